"""How well a child agrees with its parents' ensemble: quality without labels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from depfuse.align import Coupling, Couplings
from depfuse.data.loader import Loader
from depfuse.groups import ChannelGroups
from depfuse.label_sets import LabelSets
from depfuse.merge import average
from depfuse.renorm import renormalise
from depfuse.running import evaluating

RENORM_IMAGES = 500
JUDGED_IMAGES = 500


class Disagreement:
    """Judges alignments of a parent to parent 0 by the child at equal shares.

    The figure is the cross-entropy (nats) of the child's class probabilities under the mean of the two parents',
    averaged over the first `JUDGED_IMAGES` calibration images; the child's BatchNorm statistics come from the
    first `RENORM_IMAGES`. No label is read.

    Attributes
    ----------
    seconds
        Wall-clock seconds spent so far.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        groups: ChannelGroups,
        renorm: str,
        calibration: Loader,
        labels: LabelSets | None = None,
        template: nn.Module | None = None,
    ) -> None:
        self.seconds = 0.0
        self._models, self._groups, self._renorm = models, groups, renorm
        self._calibration, self._labels, self._template = calibration, labels, template

    def __call__(self, parent: int, couplings: Couplings) -> float:
        """How far the child of parent 0 and `parent` is from their ensemble."""
        started = time.perf_counter()
        identity = {group.name: Coupling.identity(group.size) for group in self._groups.free}
        pair = (self._models[0], self._models[parent])
        labels = None if self._labels is None else self._labels.of(0, parent)
        child = average(pair, self._groups, (identity, couplings), (0.5, 0.5), labels, self._template)
        renormalise(child, self._renorm, self._calibration.first(RENORM_IMAGES))
        losses = [
            -(self._joint(ours, theirs, labels) * child_own.softmax(1).clamp_min(1e-30).log()).sum(1)
            for ours, theirs, child_own in zip(self._outputs[0], self._outputs[parent], self._of(child), strict=True)
        ]
        loss = float(torch.cat(losses).mean())
        self.seconds += time.perf_counter() - started
        return loss if loss == loss else float("inf")

    @staticmethod
    def _joint(ours: Tensor, theirs: Tensor, labels: LabelSets | None) -> Tensor:
        """The ensemble's probabilities: the mean of the parents', or of both heads side by side."""
        if labels is None or labels.same:
            return (ours.softmax(1) + theirs.softmax(1)) / 2
        known = torch.stack(labels.of_outputs([ours, theirs])).amax(0) > -torch.inf
        return labels.join([ours, theirs], (0.5, 0.5), 1).masked_fill(~known, -torch.inf).softmax(1)

    @cached_property
    def _outputs(self) -> list[list[Tensor]]:
        return [list(self._of(model)) for model in self._models]

    def _of(self, model: nn.Module) -> Iterator[Tensor]:
        with torch.inference_mode(), evaluating(model):
            for images, _ in self._calibration.first(JUDGED_IMAGES):
                yield model(images)
