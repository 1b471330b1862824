"""Records of finished trials, read from a storage."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, TrialState

from depfuse.errors import StudyError
from depfuse.study.objective import RESULT
from depfuse.study.trials import TrialRecord


def record_of(trial: FrozenTrial) -> TrialRecord:
    """Read the record of a finished trial; raise `StudyError` where its attributes are not those of a search."""
    try:
        return _record_of(trial, trial.user_attrs.get(RESULT, {"recipe": None}))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StudyError(
            f"trial {trial.number} of the study holds no result of depfuse tune: choose another `name`"
        ) from None


def _record_of(trial: FrozenTrial, fields: dict[str, Any]) -> TrialRecord:
    complete = trial.state == TrialState.COMPLETE
    step = trial.last_step
    quality = trial.values[0] if complete else None if step is None else trial.intermediate_values[step]
    recipe = fields["recipe"]
    return TrialRecord(
        trial=trial.number,
        state="complete" if complete else "refused" if step is None else "pruned",
        quality=quality,
        images=recipe["calibration"]["images"] if complete and recipe else step,
        parameters=trial.params,
        **fields,
    )
