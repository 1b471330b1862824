"""The fields of `study.json`: the result of `depfuse tune`, wherever the study itself is stored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, FiniteFloat, NonNegativeInt, field_validator

from depfuse.io.stored import Stored
from depfuse.report.schema import Environment
from depfuse.study.trials import Judged, TrialRecord, best_first, complete_trials

STUDY = "study.json"  # its name in the folder of a search
Share = Annotated[FiniteFloat, Field(ge=0)]


class StudyReport(Stored):
    """The report of `depfuse tune`.

    Attributes
    ----------
    trials
        All trials that finished, in the order of their numbers; at least one is complete.
    importances
        Share of each parameter in the quality, the largest first; None where there are too few trials.
    labelled
        True if the quality is by labels, such as the accuracy, and not disagreement with the ensemble.
    measure
        What the quality is called, where it is neither the accuracy nor a disagreement in nats.
    timed
        True if seconds were a second objective.
    asked
        Number of trials that were asked for.
    parents, architectures, data
        The files of the parents, their architectures, and the name of the data.
    calibration, judged
        Training images to calibrate on and to judge by.
    kept
        Settings that were given, and not searched.
    """

    trials: list[TrialRecord]
    importances: dict[str, Share] | None
    labelled: bool
    measure: str | None = None
    timed: bool
    asked: NonNegativeInt
    parents: list[str]
    architectures: list[str]
    data: str
    calibration: NonNegativeInt
    judged: NonNegativeInt
    kept: dict[str, Any]
    environment: Environment
    command: list[str]

    @field_validator("trials")
    @classmethod
    def _one_is_complete(cls, trials: list[TrialRecord]) -> list[TrialRecord]:
        if not complete_trials(trials):
            raise ValueError("none of the trials is complete")
        return trials

    @property
    def by(self) -> Judged:
        """How children were judged."""
        return Judged(self.labelled, self.measure)

    @property
    def best(self) -> TrialRecord:
        """The best trial."""
        return best_first(self.trials, labelled=self.labelled)[0]
