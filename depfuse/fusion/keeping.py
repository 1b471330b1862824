"""What comes after the merge is kept only where it brings the child nearer to its parents' ensemble.

Some of the calibration images (`CalibrationSplit.for_steps`) are held out from every step after the merge. The smallest
example is a network fused with itself from a few images: the average is the network, and statistics or weights found
anew from these images can only be worse.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from depfuse.data.loader import Loader
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.ensemble.ensemble import Ensemble
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.renorm import reset_batch_norm
from depfuse.tasks.outputs import gives_classes

RENEWED_FROM = 500  # images, to find out whether statistics shall be renewed
WORTH_A_WORD = 1e-4  # relative difference of two distances below which nobody misses a step


@dataclass(frozen=True)
class Step:
    """What a step after the merge came to.

    Attributes
    ----------
    stage, method
        As a recipe names them: `refit` by `ridge`, `renorm` by `reset`.
    before, after
        How far the child was from the ensemble before and after it: cross-entropy (nats) at the best scale of its
        scores, or mean squared error (see `outputs`).
    alike_before, alike_after
        On how many of the images it predicted the ensemble's class; None where it predicts none.
    images
        How many there were.
    kept
        Whether the step's result is the child.
    """

    stage: Literal["refit", "renorm"]
    method: str
    before: float
    after: float
    alike_before: int | None
    alike_after: int | None
    images: int
    kept: bool

    @property
    def name(self) -> str:
        """Both in one word each, as `refit ridge`."""
        return f"{self.stage} {self.method}"

    @property
    def left_nothing_out(self) -> bool:
        """Whether the child was as near without it: it is a parent, say, or keeps all channels of both apart."""
        return abs(self.after - self.before) <= WORTH_A_WORD * self.before and self.alike_after == self.alike_before

    def __str__(self) -> str:
        alike = ""
        if self.alike_before is not None:
            alike = f", and the ensemble's class for {self.alike_after} of them, not {self.alike_before}"
        verb = "brought" if self.kept else "did not bring"
        return (
            f"{self.name} {verb} the child nearer to its parents' ensemble: on {self.images} held-out images it is "
            f"{self.after:.4f} from it, and {self.before:.4f} without{alike}"
        )


class Keeper:
    """Compare a child before and after a step with its parents' ensemble, on images held out.

    Parameters
    ----------
    ensemble
        What the child learns from; its members run once.
    calibration
        Unlabelled images.

    Attributes
    ----------
    images
        Those that steps may use, and those that they may not.
    """

    def __init__(self, ensemble: Ensemble, calibration: Loader) -> None:
        self.images = CalibrationSplit.for_steps(calibration)
        # In float64: by rounding alone, another network may be nearer to one than it is to itself.
        self._distance = EnsembleDistance(ensemble, self.images.judging, precision=torch.float64)

    def at(self, shares: Sequence[float]) -> Keeper:
        """Compare with the same ensemble at other shares; no member runs again."""
        if tuple(shares) == tuple(self._distance.ensemble.shares):
            return self
        found = copy.copy(self)
        found._distance = self._distance.at(shares)
        return found

    def compare(self, stage: Literal["refit", "renorm"], method: str, before: nn.Module, after: nn.Module) -> Step:
        """Decide whether a step's result is kept.

        It is where it is nearer, unless it predicts the ensemble's class more seldom: probabilities of an ensemble that
        is sure of nothing are also approached by a child that forgets what it predicts.
        """
        distance, count = self._distance, self.images.judging.count
        outputs = [distance.outputs(model) for model in (before, after)]
        first, second = map(distance.of_outputs, outputs)
        kept = second < first
        if not gives_classes(outputs[0]):
            return Step(stage, method, first, second, None, None, count, kept)
        was, now = map(distance.agreement, outputs)
        return Step(stage, method, first, second, was, now, count, kept and now >= was)

    def renew_where_nearer(self, child: nn.Module, images: Loader, some: Loader, kept: Sequence[str] = ()) -> Step:
        """Reset a child's BatchNorm statistics in place, unless the averages of its parents' are right already.

        Parameters
        ----------
        images
            What they are taken from.
        some
            Of them, those that steps may use, to compare by.
        kept
            Names of layers whose statistics hold in any case.
        """
        renewed = copy.deepcopy(child)
        reset_batch_norm(renewed, some.first(RENEWED_FROM), kept)
        step = self.compare("renorm", "reset", child, renewed)
        if step.kept:
            reset_batch_norm(child, images, kept)
        return step
