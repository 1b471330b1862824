"""What is kept of each trial of a search: one file that `depfuse fuse --recipe` takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from depfuse.io.atomic_files import replacing

State = Literal["complete", "pruned", "refused"]
Value = bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | FiniteFloat | str | None
LOG_RATIO = 10.0  # of the largest and the smallest value, from which they are drawn on a logarithmic scale


class TrialRecord(BaseModel):
    """One finished trial.

    Attributes
    ----------
    state
        `complete`, or given up: `pruned` since it was behind, `refused` where its recipe cannot be used.
    reason
        Why it was given up.
    quality, seconds
        Of the child, as a search judges it. Of a trial that was pruned, the last quality that is known.
    images
        Calibration images that the quality is of.
    digest
        Of the child's weights, as `depfuse fuse` with this recipe makes it on the same kind of machine.
    parameters
        What was drawn, by the names of the search.
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

    def shown_quality(self, *, labelled: bool) -> float:
        """The quality as figures show it: accuracy in per cent, disagreement in nats."""
        assert self.quality is not None
        return 100 * self.quality if labelled else self.quality

    def write(self, folder: Path) -> None:
        """Write `trial-N.json`, where there is a recipe to write."""
        if self.recipe is not None:
            with replacing(folder / f"trial-{self.trial}.json") as temporary:
                temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Slice:
    """One parameter over the complete trials that have it, and its value in each; `numeric` unless these are choices.

    `log` as `is_wide` says.
    """

    name: str
    records: Sequence[TrialRecord]
    values: list[float] | list[str]
    numeric: bool
    log: bool


def quality_title(*, labelled: bool) -> str:
    """What the quality of a search is, with its unit."""
    return "held-out accuracy (%)" if labelled else "held-out disagreement (nats)"


def is_wide(values: Sequence[float]) -> bool:
    """Whether values are better drawn on a logarithmic scale: all are positive, and their ratios large."""
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def complete_trials(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Those that came to their end."""
    return [record for record in records if record.state == "complete"]


def best_so_far(records: Iterable[TrialRecord], *, labelled: bool) -> list[TrialRecord]:
    """For each complete trial the best one of those until then."""
    return list(accumulate(complete_trials(records), lambda *pair: best_first(pair, labelled=labelled)[0]))


def slices_of(records: Iterable[TrialRecord]) -> list[Slice]:
    """One slice for each parameter, in the order in which trials drew them first."""
    complete = complete_trials(records)
    found = []
    for name in dict.fromkeys(name for record in complete for name in record.parameters):
        own = [record for record in complete if name in record.parameters]
        values = [record.parameters[name] for record in own]
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            found.append(Slice(name, own, numbers, numeric=True, log=is_wide(numbers)))
        else:
            found.append(Slice(name, own, [str(value) for value in values], numeric=False, log=False))
    return found


def best_first(records: Iterable[TrialRecord], *, labelled: bool) -> list[TrialRecord]:
    """The complete trials in the order of their quality; the faster one first where two are as good."""

    def rank(record: TrialRecord) -> tuple[float, float]:
        assert record.quality is not None
        assert record.seconds is not None
        return (-record.quality if labelled else record.quality), record.seconds

    return sorted(complete_trials(records), key=rank)


def pareto_front(records: Iterable[TrialRecord], *, labelled: bool) -> list[TrialRecord]:
    """Those to which no other is at least as good and as fast, the best first."""
    front: list[TrialRecord] = []
    for record in best_first(records, labelled=labelled):
        if not front or (record.seconds or 0.0) < (front[-1].seconds or 0.0):
            front.append(record)
    return front
