"""Targets of a child's residual streams, beside those of its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from depfuse.merge.shares import Shares
from depfuse.refit.layerwise.targets import Targets
from depfuse.refit.program.units import Unit

WEIGHT = 16.0  # of the streams' distances, relative to the loss of the logits, see `Streams`


class Streams:
    """The distance of a child's streams from the mixtures of its parents', at the end of each stage.

    The logits of few images hold little information, and steps towards these alone soon overfit; every place of a
    stream has its own target (hints, Romero et al. 2015, section 2.2), so the streams count for much more.

    Parameters
    ----------
    units
        Units of the network; of those that add to a stream, the last one of each shape counts. There may be none.
    targets
        Their targets.

    Attributes
    ----------
    weights
        Weight of a squared distance at each stream, set by the first call of `pulls`.
    """

    def __init__(self, units: Sequence[Unit], targets: Targets) -> None:
        last = {unit.target.meta["val"].shape[1:]: unit for unit in units if unit.other is not None}
        self._units, self._targets = list(last.values()), targets
        self.weights: list[float] = []

    @classmethod
    def none(cls) -> Streams:
        """Make the distance of a network whose logits alone count."""
        return cls((), Targets(Shares((1.0,)), {}))

    @property
    def weight(self) -> float:
        """Initial weight of all streams together, relative to the logits."""
        return WEIGHT if self._units else 0.0

    @property
    def nodes(self) -> list[fx.Node]:
        """Nodes at which the streams are read."""
        return [unit.target for unit in self._units]

    def wanted(self, values: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Compute each stream's target, behind its ReLU where one follows, from each parent's values at the nodes."""
        return [self._targets.passed(unit, parents) for unit, *parents in zip(self._units, *values, strict=True)]

    def pulls(
        self, values: Sequence[Tensor], wanted: Sequence[Tensor], loss: float, share: float = 1.0
    ) -> list[Tensor]:
        """Compute the gradients of the squared distances, summed over images, by the child's values at the nodes.

        The first call sets the weights: together the distances count `WEIGHT` times `loss` per image, each stream
        equally; `share` scales this in the current call.
        """
        errors = [_error(unit, *both) for unit, *both in zip(self._units, values, wanted, strict=True)]
        if not self.weights:
            squares = [float(error.square().sum()) / len(error) for error in errors]
            self.weights = [WEIGHT * loss / (len(squares) * square) if square > 0 else 0.0 for square in squares]
        return [2 * share * weight * error for weight, error in zip(self.weights, errors, strict=True)]


def _error(unit: Unit, value: Tensor, wanted: Tensor) -> Tensor:
    """Compute values minus targets; before a ReLU no value is too low where the target is zero."""
    value = value.detach().float()
    if unit.rectified:
        # A choice by weights of 0 and 1, exact, in a third of the time that `torch.where` takes: no target is negative.
        value = torch.lerp(value.relu(), value, wanted.sign().to(value))
    return value - wanted
