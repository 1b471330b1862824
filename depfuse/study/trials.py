"""Records of a search's trials: each is one file that `depfuse fuse --preset` takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from depfuse.io.atomic_files import replacing
from depfuse.tasks.scores import Measure, measure_named

State = Literal["complete", "pruned", "refused"]
Value = bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | FiniteFloat | str | None
LOG_RATIO = 10.0  # of the largest and the smallest value, from which they are drawn on a logarithmic scale


@dataclass(frozen=True)
class Judged:
    """How the children of a search are judged.

    Attributes
    ----------
    labelled
        Whether by labels: the higher the quality, the better then.
    name
        What the quality is called, where it is neither the accuracy nor a disagreement in nats.
    """

    labelled: bool
    name: str | None = None

    @property
    def measure(self) -> Measure:
        """The measure that labels are read for, or a number without a unit."""
        return measure_named(self.name or "accuracy") if self.labelled else Measure(self.name or "disagreement", "")

    @property
    def title(self) -> str:
        """The name with its unit, of an axis."""
        return f"held-out {self.measure.title}{'' if self.labelled or self.name else ' (nats)'}"

    def text(self, quality: float | None) -> str:
        """Write a quality with its unit; nats are said by the title."""
        return "not finite" if quality is None else self.measure.text(quality)


class TrialRecord(BaseModel):
    """A finished trial.

    Attributes
    ----------
    state
        `complete`; `pruned` since it was behind; or `refused` where its recipe cannot be used.
    reason
        Why it was pruned or refused.
    quality, seconds
        Of the child, as a search judges it; of a pruned trial, the last quality measured.
    images
        Number of calibration images behind the quality.
    digest
        Of the child's weights, as `depfuse fuse` with this recipe makes it on the same kind of machine.
    parameters
        Drawn values by the search's names of parameters.
    recipe
        All settings; None where they are no recipe.
    """

    model_config = ConfigDict(extra="ignore")

    trial: Annotated[int, Field(ge=0, lt=2**63)]
    state: State
    reason: str | None = None
    quality: FiniteFloat | None = None
    seconds: Annotated[FiniteFloat, Field(ge=0)] | None = None
    images: int | None = None
    digest: str | None = None
    not_converged: list[str] = []
    parameters: dict[str, Value]
    recipe: dict[str, Any] | None

    @model_validator(mode="after")
    def _is_whole(self) -> TrialRecord:
        if self.state == "complete" and None in (self.quality, self.seconds, self.recipe):
            raise ValueError("a complete trial has a quality, its seconds and a recipe")
        return self

    def shown_quality(self, judged: Judged) -> float:
        """Convert the quality for figures: fractions in per cent."""
        assert self.quality is not None
        return judged.measure.number(self.quality) if judged.labelled else self.quality

    def write(self, folder: Path) -> None:
        """Write `trial-N.json`, where there is a recipe to write."""
        if self.recipe is not None:
            with replacing(folder / f"trial-{self.trial}.json") as temporary:
                temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Slice:
    """A parameter over the complete trials that have it, with its value in each; `numeric` unless these are choices.

    `log` as `is_wide` says.
    """

    name: str
    records: Sequence[TrialRecord]
    values: list[float] | list[str]
    numeric: bool
    log: bool


def is_wide(values: Sequence[float]) -> bool:
    """Tell whether values suit a logarithmic scale: all are positive, and their ratios large."""
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def complete_trials(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Select the complete trials."""
    return [record for record in records if record.state == "complete"]


def best_so_far(records: Iterable[TrialRecord], *, labelled: bool) -> list[TrialRecord]:
    """Find, for each complete trial, the best one until then."""
    return list(accumulate(complete_trials(records), lambda *pair: best_first(pair, labelled=labelled)[0]))


def slices_of(records: Iterable[TrialRecord]) -> list[Slice]:
    """Make one slice for each parameter, in the order in which trials drew them first."""
    complete = complete_trials(records)
    slices = []
    for name in dict.fromkeys(name for record in complete for name in record.parameters):
        having = [record for record in complete if name in record.parameters]
        values = [record.parameters[name] for record in having]
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            slices.append(Slice(name, having, numbers, numeric=True, log=is_wide(numbers)))
        else:
            slices.append(Slice(name, having, [str(value) for value in values], numeric=False, log=False))
    return slices


def best_first(records: Iterable[TrialRecord], *, labelled: bool) -> list[TrialRecord]:
    """Sort the complete trials by quality; the faster one first where two are as good."""

    def rank(record: TrialRecord) -> tuple[float, float]:
        assert record.quality is not None
        assert record.seconds is not None
        return (-record.quality if labelled else record.quality), record.seconds

    return sorted(complete_trials(records), key=rank)


def pareto_front(records: Iterable[TrialRecord], *, labelled: bool) -> list[TrialRecord]:
    """Find the trials that no other equals in both quality and speed, the best first."""
    front: list[TrialRecord] = []
    for record in best_first(records, labelled=labelled):
        if not front or (record.seconds or 0.0) < (front[-1].seconds or 0.0):
            front.append(record)
    return front
