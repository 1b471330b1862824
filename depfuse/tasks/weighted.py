"""Several output tensors, each of a task of its own: packed into one row per image, and weighted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depfuse.errors import RecipeError
from depfuse.tasks.regression import Regression
from depfuse.tasks.tallies.tally import Tally
from depfuse.tasks.task import Task


@dataclass(frozen=True, eq=False)
class WeightedPart:
    """One of the tensors.

    Attributes
    ----------
    name
        Where it stands in the output, for messages.
    task
        What it means.
    shape
        Its shape for one image.
    weight
        How much its divergence counts, in its unit.
    """

    name: str
    task: Task
    shape: torch.Size
    weight: float


class Weighted:
    r"""Weighted sum :math:`\sum_k w_k D_k / u_k` of the divergences of several tensors, each in its unit :math:`u_k`.

    Outputs are packed rows (N, M): the tensors, flattened, one behind the other.

    Parameters
    ----------
    parts
        The tensors in their order.
    units
        The divergence of each that counts as large (`Task.unit`); all are one where None.
    """

    name = "weighted"
    scalable = False  # a factor is of one head

    def __init__(self, parts: Sequence[WeightedPart], units: Sequence[float] | None = None) -> None:
        self.parts = tuple(parts)
        self._factors = [
            part.weight / (unit if unit > 0 else 1.0)
            for part, unit in zip(parts, units or [1.0] * len(parts), strict=True)
        ]
        self._sizes = [max(1, part.shape.numel()) for part in parts]
        self.predicts = any(part.task.predicts for part in parts)

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Weighted:
        """Raise `RecipeError`: one tensor has one task."""
        raise RecipeError(
            f"`task=weighted` is of several tensors, and the networks give one, {tuple(outputs[0].shape)}: leave it out"
        )

    @classmethod
    def scaled(cls, parts: Sequence[WeightedPart], outputs: Sequence[Tensor]) -> Weighted:
        """Build the task with units from each parent's packed outputs (N, M)."""
        plain = cls(parts)
        shares = (1.0 / len(outputs),) * len(outputs)
        targets = plain.split(plain.mean(outputs, shares))
        return cls(parts, [part.task.unit(target) for part, target in zip(parts, targets, strict=True)])

    def split(self, packed: Tensor) -> list[Tensor]:
        """Unpack rows (N, M) into the tensors (N, ...)."""
        if packed.shape[1] != sum(self._sizes):
            raise RecipeError(
                f"the outputs of an image are {packed.shape[1]} numbers here and {sum(self._sizes)} elsewhere: give "
                "images of one size, or say which tensor counts, as `scores`"
            )
        rows = torch.split(packed, self._sizes, 1)
        return [own.reshape(len(packed), *part.shape) for own, part in zip(rows, self.parts, strict=True)]

    def joint_mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average the packed outputs of parents with a joint head, of which none predicts anything by itself."""
        return torch.stack([share * own for share, own in zip(shares, outputs, strict=True)]).sum(0)

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Combine each tensor as its task does."""
        return self._combined(outputs, lambda task, own: task.ensemble_target(own, shares, temperature))

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Sum the weighted divergences."""
        found = self._each(lambda task, own, wanted: task.divergence(own, wanted, temperature), outputs, target)
        return torch.stack([factor * own for factor, own in zip(self._factors, found, strict=True)]).sum()

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Pack the weighted gradients."""
        return self._packed(self._each(lambda task, own, t: task.slope(own, t, temperature), outputs, target))

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Pack the weighted products: no tensor's Hessian has entries with another's."""
        found = self._each(lambda task, own, z: task.curvature_product(own, z, temperature), change, outputs)
        return self._packed(found)

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """Pack the factors, times the root of their weights; numbers count by their mean here, as in the sum."""
        rows = signs.reshape(-1, len(outputs))
        found = []
        for part, factor, own, vectors in zip(
            self.parts, self._factors, torch.split(outputs, self._sizes), torch.split(rows, self._sizes, 1), strict=True
        ):
            mean = len(own) if isinstance(part.task, Regression) else 1
            # What is one number for each image has no axis left.
            single = own.reshape(part.shape) if part.shape else own.reshape(1)
            found.append(part.task.factor(single, vectors) * math.sqrt(factor / mean))
        return torch.cat(found, 1).reshape(signs.shape)

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Pack samples, times the root of their weights."""
        found = self._each(lambda task, own: task.sample(own, generator, temperature), outputs)
        return self._packed(found, [math.sqrt(factor) for factor in self._factors])

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average each tensor's predictions."""
        return self._combined(outputs, lambda task, own: task.mean(own, shares))

    def predictions(self, outputs: Tensor) -> Tensor:
        """Pack the predictions."""
        return self._packed(self._each(lambda task, own: task.predictions(own), outputs), None)

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Sum the weighted losses (N,)."""
        found = self._each(lambda task, own, wanted: task.losses(own, wanted), outputs, target)
        return torch.stack([factor * own for factor, own in zip(self._factors, found, strict=True)]).sum(0)

    def centred(self, directions: Tensor) -> Tensor:
        """Project the directions of each tensor, and weight them as its derivatives."""
        found = self._each(lambda task, own: task.centred(own), directions)
        return self._packed(found, [math.sqrt(factor) for factor in self._factors])

    def agreements(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Average over the tensors that predict; NaN where none does."""
        found = self._each(lambda task, own, wanted: task.agreements(own, wanted), outputs, target)
        known = [own for part, own in zip(self.parts, found, strict=True) if part.task.predicts]
        return torch.stack([own.float() for own in known]).mean() if known else found[0]

    def unit(self, target: Tensor) -> float:
        """Return the sum of the weights: each divergence is in its unit already."""
        return sum(part.weight for part in self.parts)

    @property
    def main(self) -> WeightedPart:
        """The tensor that counts most, by which networks are scored."""
        return max(self.parts, key=lambda part: part.weight)

    def fitted_labels(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Give labels the form of the main tensor's, whose labels they are."""
        return self.main.task.fitted_labels(labels, self._main_of(outputs))

    def label_loss(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Compute the loss of the main tensor; no label is of the others."""
        return self.main.task.label_loss(self._main_of(outputs), labels, smoothing)

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Sum the share of the main tensor's predictions that are its labels."""
        return self.main.task.right(self._main_of(outputs), labels)

    def _main_of(self, packed: Tensor) -> Tensor:
        return self.split(packed)[self.parts.index(self.main)]

    def tally(self) -> Tally:
        """Begin to score the main tensor, alone."""
        return self.main.task.tally()

    def _each(self, function: Callable[..., Tensor], *packed: Tensor) -> list[Tensor]:
        return [
            function(part.task, *own)
            for part, *own in zip(self.parts, *[self.split(tensor) for tensor in packed], strict=True)
        ]

    def _combined(self, outputs: Sequence[Tensor], function: Callable[[Task, list[Tensor]], Tensor]) -> Tensor:
        """Combine the parents' tensors one by one, and pack what that gives."""
        parents = [self.split(own) for own in outputs]
        found = [function(part.task, [own[number] for own in parents]) for number, part in enumerate(self.parts)]
        return pack(found)

    def _packed(self, tensors: Sequence[Tensor], factors: Sequence[float] | None = ()) -> Tensor:
        """Pack tensors, times the weights, other factors, or none (None)."""
        if factors is None:
            return pack(tensors)
        return pack([factor * own for factor, own in zip(factors or self._factors, tensors, strict=True)])


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Flatten tensors (N, ...) into one of rows (N, M)."""
    return torch.cat([own.reshape(len(own), -1) for own in tensors], 1)
