"""Keep a step after the merge only where it reduces the child's distance from its parents' ensemble.

Some of the calibration images (`CalibrationSplit.for_steps`) are held out from every step after the merge. The smallest
example is a network fused with itself from a few images: the average is the network, and statistics or weights
estimated from these images can only be worse.
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
from depfuse.teach.self_training import Effect
from depfuse.text import decimal

RENEWED_FROM = 500  # images, to decide whether statistics are renewed
NEGLIGIBLE = 1e-4  # relative difference of two distances


@dataclass(frozen=True)
class Step:
    """The effect of a step after the merge.

    Attributes
    ----------
    stage, method
        As a recipe names them: `refit` by `ridge`, `renorm` by `reset`, `train` by `self_training`.
    before, after
        The child's distance from the ensemble before and after it: cross-entropy (nats) at the best scale of its
        scores, or mean squared error (see `outputs`). Of self-training from the labels of the ensemble that taught it.
    alike_before, alike_after
        Number of images for which it predicted the ensemble's class, an image with several predictions counted by the
        share of them; None where outputs predict none.
    images
        Number of images.
    kept
        Whether the step's result is the child.
    """

    stage: Literal["refit", "renorm", "train"]
    method: str
    before: float
    after: float
    alike_before: float | None
    alike_after: float | None
    images: int
    kept: bool

    @classmethod
    def of_self_training(cls, effect: Effect) -> Step:
        """Describe self-training as the last step."""
        alike = effect.alike_before, effect.alike_after
        return cls("train", "self_training", effect.before, effect.after, *alike, effect.images, effect.kept)

    @property
    def name(self) -> str:
        """Stage and method, as `refit ridge`."""
        return f"{self.stage} {self.method}"

    @property
    def negligible(self) -> bool:
        """Whether the step changes nothing: the child is a parent, say, or no channels were merged."""
        return abs(self.after - self.before) <= NEGLIGIBLE * self.before and self.alike_after == self.alike_before

    def __str__(self) -> str:
        alike = ""
        if self.alike_before is not None:
            alike = f", and the ensemble's class for {self.alike_after:g} of them, not {self.alike_before:g}"
        verb = "brought" if self.kept else "did not bring"
        return (
            f"{self.name} {verb} the child nearer to its parents' ensemble: on {self.images} held-out images it is "
            f"{decimal(self.after)} from it, and {decimal(self.before)} without{alike}"
        )


class StepAcceptance:
    """Compare a child before and after a step with its parents' ensemble, on images held out.

    Parameters
    ----------
    ensemble
        The teacher; its members run once.
    calibration
        Unlabelled images.

    Attributes
    ----------
    images
        Images that steps use, and images held out from them.
    """

    def __init__(self, ensemble: Ensemble, calibration: Loader) -> None:
        self.images = CalibrationSplit.for_steps(calibration)
        # In float64: by rounding alone, another network can be nearer to a network than that is to itself.
        self._distance = EnsembleDistance(ensemble, self.images.judging, precision=torch.float64)

    def at(self, shares: Sequence[float]) -> StepAcceptance:
        """Compare with the same ensemble at other shares; no member is run again."""
        if tuple(shares) == tuple(self._distance.ensemble.shares):
            return self
        acceptance = copy.copy(self)
        acceptance._distance = self._distance.at(shares)
        return acceptance

    def compare(self, stage: Literal["refit", "renorm"], method: str, before: nn.Module, after: nn.Module) -> Step:
        """Decide whether a step's result is kept.

        It is where it is nearer, unless it predicts the ensemble's class more seldom: a child that loses its
        predictions can also approach the probabilities of an ensemble that is confident of nothing.
        """
        distance, count = self._distance, self.images.judging.count
        outputs = [distance.outputs(model) for model in (before, after)]
        first, second = map(distance.of_outputs, outputs)
        kept = second < first
        alike_before, alike_after = map(distance.agreement, outputs)
        if alike_before is not None and alike_after is not None:
            kept = kept and alike_after >= alike_before
        return Step(stage, method, first, second, alike_before, alike_after, count, kept)

    def try_reset(self, child: nn.Module, images: Loader, kept: Sequence[str] = ()) -> tuple[Step, nn.Module]:
        """Decide whether a child's BatchNorm statistics are reset: where that reduces its distance from the ensemble.

        Parameters
        ----------
        images
            Those that are not held out, on the first `RENEWED_FROM` of which the reset is tried.
        kept
            Names of layers whose statistics are kept in any case.

        Returns
        -------
        Step, nn.Module
            The decision, and the nearer one of the child and its copy with other statistics.
        """
        renewed = copy.deepcopy(child)
        reset_batch_norm(renewed, images.first(RENEWED_FROM), kept)
        step = self.compare("renorm", "reset", child, renewed)
        return step, renewed if step.kept else child
