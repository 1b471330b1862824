r"""Detectors: class scores at each place, and numbers of what is there, such as boxes and centreness.

The smallest example is one place of a map. A parent that knows cats has a logit for cats and a box there, one that
knows dogs a logit for dogs and another box. Where only the second sees something, its box counts, and the first
parent's is noise: boxes are learned where something is there alone. So the confidence c of a place, the highest
probability of a class that is no background, weighs the parents' numbers,
:math:`b = \sum_p w_p c_p b_p / \sum_p w_p c_p`, and the squared errors of the child's (as detectors are trained: Tian
et al. 2019, FCOS, equation 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depfuse.errors import RecipeError
from depfuse.tasks.weighted import Weighted, WeightedPart, pack

LEAST_CONFIDENCE = 1e-3  # of a parent, so that their numbers are averaged where none of them sees anything


class Detection(Weighted):
    r"""Divergences of class scores, and squared errors of numbers weighted by the confidence at their places.

    All are per place at which something is seen, as the losses of detectors are, and ignore temperatures: at high ones
    the many places of background would count most.

    Parameters
    ----------
    parts, units
        See `Weighted`; classes are (C, ...), what is beside them (K, ...).
    beside
        For each part, the number of the class part whose places it shares; None of class parts, and of what has no
        such places.
    known
        For each parent its columns among the classes, background left out; none where all know the same.
    background
        The column of background where scores are of a softmax with such a class; None where each class is a logit of
        its own.
    """

    name = "detection"

    def __init__(
        self,
        parts: Sequence[WeightedPart],
        beside: Sequence[int | None],
        known: Sequence[Sequence[int]] = (),
        background: int | None = None,
        units: Sequence[float] | None = None,
        seen: float = 1.0,
    ) -> None:
        super().__init__(parts, units)
        self.beside, self.known, self.background = tuple(beside), tuple(map(tuple, known)), background
        self._seen = seen

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Weighted:
        """Raise `RecipeError`: what a detector gives is several tensors."""
        raise RecipeError(
            f"`task=detection` is of class scores with boxes beside them, and the networks give one tensor,"
            f" {tuple(outputs[0].shape)}: let them return a dictionary of the two"
        )

    def in_units_of(self, target: Tensor) -> Detection:
        """Take as units what the ensemble's packed outputs (N, M) say: per place at which something is seen."""
        seen = max(1e-6, float(torch.cat([own.flatten() for own in self._confidences(target).values()]).mean()))
        plain = Detection(self.parts, self.beside, self.known, self.background, seen=seen)
        units = []
        for own, part, place in zip(plain.split(target), self.parts, self.beside, strict=True):
            if place is None:
                units.append(seen if part.task.predicts else part.task.unit(own))
                continue
            weight = plain._weights(target)[place].expand_as(own)
            mean = (weight * own).mean((0, *range(2, own.dim())), keepdim=True) / weight.mean().clamp_min(1e-6)
            units.append(part.task.unit(weight.sqrt() * (own - mean)))
        return Detection(self.parts, self.beside, self.known, self.background, units, seen)

    @property
    def main(self) -> WeightedPart:
        """The class scores, the first of several."""
        places = zip(self.parts, self.beside, strict=True)
        return next(part for part, place in places if place is None and part.task.predicts)

    def joint_mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average packed outputs of parents with a joint head; numbers count where their parent sees something."""
        mean = super().joint_mean(outputs, shares)
        tensors = self.split(mean)
        confidences = [self._confidences(mean, columns or None) for columns in self.known or [()] * len(outputs)]
        return self._gated(tensors, outputs, shares, confidences)

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Combine class scores as their task does, and numbers by their parents' confidence."""
        tensors = self.split(super().ensemble_target(outputs, shares, 1.0))
        return self._gated(tensors, outputs, shares, [self._confidences(own) for own in outputs])

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average predictions, and numbers by their parents' confidence."""
        tensors = self.split(super().mean(outputs, shares))
        return self._gated(tensors, outputs, shares, [self._confidences(own) for own in outputs])

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Sum the weighted divergences."""
        weights = self._weights(target)
        return super().divergence(self._by(outputs, weights), self._by(target, weights), 1.0)

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Pack the weighted gradients."""
        weights = self._weights(target)
        slope = super().slope(self._by(outputs, weights), self._by(target, weights), 1.0)
        return self._by(slope, weights)

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Pack the weighted products; the confidence is that of the outputs."""
        weights = self._weights(outputs)
        return self._by(super().curvature_product(self._by(change, weights), outputs, 1.0), weights)

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """Pack the factors; the confidence is that of the outputs."""
        weights = self._weights(outputs[None])
        rows = super().factor(outputs, signs).reshape(-1, len(outputs))
        return self._by(rows, weights).reshape(signs.shape)

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Pack samples; the confidence is that of the outputs."""
        return self._by(super().sample(outputs, generator, 1.0), self._weights(outputs))

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Sum the weighted losses (N,); the confidence is that of the target predictions."""
        weights = self._weights(target, predicted=True)
        return super().losses(self._by(outputs, weights), self._by(target, weights))

    def _gated(
        self,
        tensors: list[Tensor],
        outputs: Sequence[Tensor],
        shares: Sequence[float],
        confidences: Sequence[dict[int, Tensor]],
    ) -> Tensor:
        """Replace the numbers beside classes by their means, weighted by shares and confidences, and pack."""
        parents = [self.split(own) for own in outputs]
        for number, place in enumerate(self.beside):
            if place is not None:
                gates = torch.stack([
                    share * (own[place] + LEAST_CONFIDENCE) for share, own in zip(shares, confidences, strict=True)
                ])  # fmt: skip
                gates = gates / gates.sum(0).clamp_min(1e-30)
                tensors[number] = (gates * torch.stack([own[number] for own in parents])).sum(0)
        return pack(tensors)

    def _weights(self, packed: Tensor, *, predicted: bool = False) -> dict[int, Tensor]:
        """Compute the weight (N, 1, ...) of each place by class part: its confidence, relative to the usual one."""
        return {place: own / self._seen for place, own in self._confidences(packed, predicted=predicted).items()}

    def _confidences(
        self, packed: Tensor, columns: Sequence[int] | None = None, *, predicted: bool = False
    ) -> dict[int, Tensor]:
        """Compute the confidence (N, 1, ...) of each class part's places, from scores or what they predict."""
        tensors = self.split(packed.detach())
        found = {}
        for number in {place for place in self.beside if place is not None}:
            own = tensors[number] if predicted else self.parts[number].task.predictions(tensors[number])
            chosen = [column for column in range(own.shape[1]) if column != self.background]
            kept = list(columns) if columns is not None else chosen
            found[number] = own[:, kept].amax(1, keepdim=True)
        return found

    def _by(self, packed: Tensor, weights: dict[int, Tensor]) -> Tensor:
        """Multiply the numbers beside classes by the roots of their weights: their errors count by them then."""
        tensors = self.split(packed)
        return pack([
            own if place is None else weights[place].sqrt() * own
            for own, place in zip(tensors, self.beside, strict=True)
        ])  # fmt: skip
