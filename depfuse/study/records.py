"""The records of finished trials, from what a storage holds of them."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, TrialState

from depfuse.errors import StudyError
from depfuse.study.objective import RESULT
from depfuse.study.trials import TrialRecord


def record_of(trial: FrozenTrial) -> TrialRecord:
    """The record of a finished trial; a `StudyError` where what is kept with it is not what a search keeps."""
    try:
        return _record_of(trial, trial.user_attrs.get(RESULT, {"recipe": None}))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StudyError(
            f"trial {trial.number} of the study holds no result of depfuse tune: choose another name with --study"
        ) from None


def _record_of(trial: FrozenTrial, found: dict[str, Any]) -> TrialRecord:
    complete = trial.state == TrialState.COMPLETE
    step = trial.last_step
    quality = trial.values[0] if complete else None if step is None else trial.intermediate_values[step]
    recipe = found["recipe"]
    return TrialRecord(
        trial=trial.number,
        state="complete" if complete else "refused" if step is None else "pruned",
        quality=quality,
        images=recipe["calibration"] if complete and recipe else step,
        parameters=trial.params,
        **found,
    )
