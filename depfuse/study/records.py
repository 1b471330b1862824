"""The records of finished trials, from what a storage holds of them."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, TrialState

from depfuse.report.trials import TrialRecord
from depfuse.study.objective import RESULT


def record_of(trial: FrozenTrial) -> TrialRecord:
    """The record of a finished trial."""
    found: dict[str, Any] = trial.user_attrs.get(RESULT, {"recipe": None})
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
