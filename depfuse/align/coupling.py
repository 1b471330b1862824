"""Couplings: how much of each source channel goes to each target channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroup, ChannelGroups, Slot


@dataclass(frozen=True, eq=False)
class Coupling:
    """For one group, where the target's channels come from.

    Exactly one of the two is set.

    Attributes
    ----------
    permutation
        (n,) int64: target channel i is source channel permutation[i].
    plan
        (n_target, n_source), non-negative, total mass 1: how much of source channel j goes to target
        channel i (a transport plan between uniform masses).
    """

    permutation: Tensor | None = None
    plan: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.permutation is None) == (self.plan is None):
            raise ValueError("a coupling is either a permutation or a plan")

    @classmethod
    def identity(cls, size: int) -> Coupling:
        """Every channel to itself."""
        return cls(torch.arange(size))

    @property
    def sizes(self) -> tuple[int, int]:
        """(n_target, n_source)."""
        if self.permutation is not None:
            return len(self.permutation), len(self.permutation)
        assert self.plan is not None
        return self.plan.shape[0], self.plan.shape[1]

    @property
    def matrix(self) -> Tensor:
        """The plan (n_target, n_source), float64; a permutation has 1/n at each of its pairs."""
        if self.plan is not None:
            return self.plan
        assert self.permutation is not None
        size = len(self.permutation)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix[torch.arange(size), self.permutation.cpu()] = 1.0 / size
        return matrix

    def inverse(self) -> Coupling:
        """The coupling in the other direction."""
        if self.permutation is not None:
            return Coupling(torch.argsort(self.permutation))
        assert self.plan is not None
        return Coupling(plan=self.plan.T)

    def compose(self, other: Coupling) -> Coupling:
        """The coupling from `other`'s sources to this one's targets, through the channels between.

        Raises
        ------
        RecipeError
            This coupling's sources are not as many as the other's targets.
        """
        if self.sizes[1] != other.sizes[0]:
            raise RecipeError(
                f"a coupling from {self.sizes[1]} channels cannot follow one to {other.sizes[0]} channels"
            )
        if self.permutation is not None and other.permutation is not None:
            return Coupling(other.permutation[self.permutation])
        middle = self.sizes[1]
        return Coupling(plan=self.matrix @ other.matrix.to(self.matrix) * middle)

    def apply(self, slot: Slot, tensor: Tensor) -> Tensor:
        """The source's tensor with the slot's channels brought to the target's.

        A target channel is the average of its sources (rows of the plan sum to one) where the slot produces
        or scales it. Where the slot consumes it, each source's incoming weight is shared out among its
        targets (columns sum to one), so that no input is counted twice. (Singh & Jaggi 2020, section 3.)
        """
        if self.permutation is not None:
            return slot.permute(tensor, self.permutation)
        assert self.plan is not None
        plan = self.plan.to(tensor.device, torch.float64)
        mass = plan.sum(0 if slot.role == "consumes" else 1, keepdim=True).clamp_min(1e-300)
        return slot.write(tensor, (plan / mass) @ slot.read(tensor).double())


Couplings = Mapping[str, Coupling]


def apply_couplings(
    groups: ChannelGroups | tuple[ChannelGroup, ...], couplings: Couplings, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """State dict of a parent with each group's channels brought to the target's order."""
    aligned = dict(state)
    for group in groups:
        coupling = couplings.get(group.name)
        for slot in group.slots if coupling is not None and group.fixed is None else ():
            aligned[slot.key] = coupling.apply(slot, aligned[slot.key])  # type: ignore[union-attr]
    return aligned
