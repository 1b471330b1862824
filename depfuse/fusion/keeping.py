"""What comes after the merge is kept only where it brings the child nearer to its parents' ensemble.

The last sixteenth of the calibration images, of few images up to an eighth, is held out from every step after the
merge. The smallest example is a network fused with itself from a few images: the average is the network, and statistics
or weights found anew from these images can only be worse.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import wanted_of
from depfuse.fusion.agreement import at_best_scale, mean_or_infinite
from depfuse.networks.running import evaluating
from depfuse.renorm import reset_batch_norm
from depfuse.tasks.outputs import gives_classes

# What is held out is missed by the refit: of six digits pairs, children refitted from 15/16 of the images have a lower
# cross-entropy than from 7/8 on four, a higher one on one.
HELD_OUT = 1 / 16
HELD_OUT_OF_FEW = 1 / 8  # as long as that is not more than so many images:
ENOUGH_HELD_OUT = 32
MOST_HELD_OUT = 500
RENEWED_FROM = 500  # images, to find out whether statistics shall be renewed
WORTH_A_WORD = 1e-4  # relative difference of two distances below which nobody misses a step
FEWEST = 3  # of fewer images none can be held out: two are left for statistics


@dataclass(frozen=True)
class Step:
    """What a step after the merge came to.

    Attributes
    ----------
    name
        As a recipe names it: `refit ridge`, `renorm reset`.
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

    name: str
    before: float
    after: float
    alike_before: int | None
    alike_after: int | None
    images: int
    kept: bool

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
    """Compares a child before and after a step with its parents' ensemble, on images held out.

    Parameters
    ----------
    teachers
        The networks of the ensemble.
    shares
        One weight per teacher, summing to one.
    labels
        Which labels their outputs stand for, where they differ.
    calibration
        Unlabelled images.
    joint
        Whether they have one head together, see `wanted_of`.

    Attributes
    ----------
    seen
        The images that steps may use.
    held
        Those that they may not; the same where there are fewer than three.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        shares: Sequence[float],
        labels: LabelSets | None,
        calibration: Loader,
        *,
        joint: bool = False,
    ) -> None:
        self._teachers, self._shares, self._labels, self._joint = teachers, shares, labels, joint
        count = calibration.count
        held = min(ENOUGH_HELD_OUT, max(1, round(HELD_OUT_OF_FEW * count)))
        held = min(MOST_HELD_OUT, max(held, round(HELD_OUT * count)))
        if count < FEWEST:
            self.seen = self.held = calibration
        else:
            self.seen, self.held = calibration.first(count - held), calibration.between(count - held, count)

    def compare(self, name: str, before: nn.Module, after: nn.Module) -> Step:
        """Decide whether a step's result is kept.

        It is where it is nearer, unless it predicts the ensemble's class more seldom: probabilities of an ensemble that
        is sure of nothing are also approached by a child that forgets what it predicts.
        """
        outputs = [self._outputs(model) for model in (before, after)]
        first, second = (mean_or_infinite(at_best_scale(own, self._wanted)[0]) for own in outputs)
        kept = second < first
        if not gives_classes(outputs[0]):
            return Step(name, first, second, None, None, self.held.count, kept)
        was, now = (int((own.argmax(1) == self._wanted.argmax(1)).sum()) for own in outputs)
        return Step(name, first, second, was, now, self.held.count, kept and now >= was)

    def renew_where_nearer(self, child: nn.Module, images: Loader, some: Loader, kept: Sequence[str] = ()) -> Step:
        """Reset a child's BatchNorm statistics in place, unless the averages of its parents' are right already.

        Parameters
        ----------
        images
            What they are taken from.
        some
            Of them, those that are seen, to compare by.
        kept
            Names of layers whose statistics hold in any case.
        """
        renewed = copy.deepcopy(child)
        reset_batch_norm(renewed, some.first(RENEWED_FROM), kept)
        step = self.compare("renorm reset", child, renewed)
        if step.kept:
            reset_batch_norm(child, images, kept)
        return step

    @cached_property
    def _wanted(self) -> Tensor:
        outputs = [self._outputs(model) for model in self._teachers]
        return wanted_of(outputs, self._shares, self._labels, joint=self._joint)

    def _outputs(self, model: nn.Module) -> Tensor:
        """In float64: by rounding alone, another network may be nearer to one than it is to itself."""
        with torch.inference_mode(), evaluating(model):
            return torch.cat([model(images).double() for images, _ in self.held])
