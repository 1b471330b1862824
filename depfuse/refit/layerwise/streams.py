"""What a child's residual streams shall carry, beside what it shall say in the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from depfuse.merge.shares import Shares
from depfuse.refit.layerwise.targets import Targets
from depfuse.refit.program.units import Unit

WEIGHT = 16.0


class Streams:
    """The distance of a child's streams from the mixtures of its parents', where each stage ends.

    A few images say little by their logits, and steps towards these alone soon fit nothing but them; every place of a
    stream has its own target (hints, Romero et al. 2015, section 2.2), so the streams count for much more.

    Parameters
    ----------
    units
        Of those that add to a stream, the last one of each shape is looked at; there may be none.
    targets
        What they shall give.

    Attributes
    ----------
    weights
        What a squared distance counts at each stream, found when they are first asked for.
    """

    def __init__(self, units: Sequence[Unit], targets: Targets) -> None:
        last = {unit.target.meta["val"].shape[1:]: unit for unit in units if unit.other is not None}
        self._units, self._targets = list(last.values()), targets
        self.weights: list[float] = []

    @classmethod
    def none(cls) -> Streams:
        """Of a network whose class scores alone count."""
        return cls((), Targets(Shares((1.0,)), {}))

    @property
    def weight(self) -> float:
        """What all streams together count at first, beside the class scores."""
        return WEIGHT if self._units else 0.0

    @property
    def nodes(self) -> list[fx.Node]:
        """Where the streams are looked at."""
        return [unit.target for unit in self._units]

    def wanted(self, values: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """What each stream shall carry, behind its ReLU where one follows, from each parent's values at the nodes."""
        return [self._targets.passed(unit, own) for unit, *own in zip(self._units, *values, strict=True)]

    def pulls(
        self, values: Sequence[Tensor], wanted: Sequence[Tensor], loss: float, share: float = 1.0
    ) -> list[Tensor]:
        """The derivatives, by the child's values at the nodes, of their squared distances, summed over images.

        The first time this is asked for, the distances are weighted: together they count `WEIGHT` times `loss` per
        image, each stream as much as another; `share` of that is what they count now.
        """
        errors = [_error(unit, *both) for unit, *both in zip(self._units, values, wanted, strict=True)]
        if not self.weights:
            squares = [float(error.square().sum()) / len(error) for error in errors]
            self.weights = [WEIGHT * loss / (len(squares) * square) if square > 0 else 0.0 for square in squares]
        return [2 * share * weight * error for weight, error in zip(self.weights, errors, strict=True)]


def _error(unit: Unit, value: Tensor, wanted: Tensor) -> Tensor:
    """How far values are from what they shall be; in front of a ReLU none is too low where nothing shall pass."""
    error = value.detach().float() - wanted
    return torch.where((wanted > 0) | (value > 0), error, 0.0) if unit.rectified else error
