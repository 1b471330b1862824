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

    def __init__(self, models: Sequence[nn.Module], groups: ChannelGroups, renorm: str, calibration: Loader) -> None:
        self.seconds = 0.0
        self._models, self._groups, self._renorm = models, groups, renorm
        self._calibration = calibration

    def __call__(self, parent: int, couplings: Couplings) -> float:
        """How far the child of parent 0 and `parent` is from their ensemble."""
        return self.of((self._models[0], self._models[parent]), parent, couplings)

    def of(self, pair: tuple[nn.Module, nn.Module], parent: int, couplings: Couplings | None = None) -> float:
        """The same for the child of two networks that stand for parent 0 and `parent`, at other widths, say.

        Without couplings, they are merged as they stand.
        """
        started = time.perf_counter()
        identity = {group.name: Coupling.identity(group.size) for group in self._groups.free}
        child = average(pair, self._groups, (identity, identity if couplings is None else couplings), (0.5, 0.5))
        renormalise(child, self._renorm, self._calibration.first(RENORM_IMAGES))
        losses = [
            -((ours + theirs) / 2 * child_own.clamp_min(1e-30).log()).sum(1)
            for ours, theirs, child_own in zip(
                self._probabilities[0], self._probabilities[parent], self._of(child), strict=True
            )
        ]
        loss = float(torch.cat(losses).mean())
        self.seconds += time.perf_counter() - started
        return loss if loss == loss else float("inf")

    @cached_property
    def _probabilities(self) -> list[list[Tensor]]:
        return [list(self._of(model)) for model in self._models]

    def _of(self, model: nn.Module) -> Iterator[Tensor]:
        with torch.inference_mode(), evaluating(model):
            for images, _ in self._calibration.first(JUDGED_IMAGES):
                yield model(images).softmax(1)
