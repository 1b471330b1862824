"""What is kept of each trial of a search: one file that `depfuse fuse --recipe` takes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from depfuse.checkpoint import replacing

State = Literal["complete", "pruned", "refused"]


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

    trial: int
    state: State
    reason: str | None = None
    quality: float | None = None
    seconds: float | None = None
    images: int | None = None
    digest: str | None = None
    not_converged: list[str] = []
    parameters: dict[str, Any]
    recipe: dict[str, Any] | None

    def write(self, folder: Path) -> None:
        """Write `trial-N.json`, where there is a recipe to write."""
        if self.recipe is not None:
            with replacing(folder / f"trial-{self.trial}.json") as temporary:
                temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def best_first(records: Iterable[TrialRecord], *, labelled: bool) -> list[TrialRecord]:
    """The complete trials in the order of their quality; the faster one first where two are as good."""
    complete = [record for record in records if record.state == "complete"]

    def rank(record: TrialRecord) -> tuple[float, float]:
        assert record.quality is not None
        assert record.seconds is not None
        return (-record.quality if labelled else record.quality), record.seconds

    return sorted(complete, key=rank)


def pareto_front(records: Iterable[TrialRecord], *, labelled: bool) -> list[TrialRecord]:
    """Those to which no other is at least as good and as fast, the best first."""
    front: list[TrialRecord] = []
    for record in best_first(records, labelled=labelled):
        if not front or (record.seconds or 0.0) < (front[-1].seconds or 0.0):
            front.append(record)
    return front
