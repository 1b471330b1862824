"""Couplings: how much of each source channel goes to each target channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroup, ChannelGroups, Slot
from depfuse.groups.nesting import Orbit, find_orbits


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
    groups: ChannelGroups | Sequence[ChannelGroup], couplings: Couplings, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """State dict of a parent with each group's channels brought to the target's order.

    Blocks are moved first, then what is inside each of them: an inner group's coupling brings channels from the block
    that has come to its place.

    Parameters
    ----------
    groups
        All groups, fixed ones included, which are left alone.
    couplings
        Group name -> coupling; groups without one are left alone.
    state
        The parent's state dict.
    """
    aligned = dict(state)
    for root in find_orbits(tuple(groups)):
        moved = flat_positions(root, couplings)
        if moved is not None:
            aligned = root.permute(aligned, moved)
            continue
        for orbit in root.walk():
            for group in orbit.groups:
                coupling = couplings.get(group.name)
                for slot in group.slots if coupling is not None else ():
                    aligned[slot.key] = coupling.apply(slot, aligned[slot.key])  # type: ignore[union-attr]
    return aligned


def compose(groups: ChannelGroups | Sequence[ChannelGroup], first: Couplings, second: Couplings) -> dict[str, Coupling]:
    r"""Couplings of all groups that do what `first` and then `second` do.

    Nested groups do not compose name by name. With blocks permuted by :math:`\sigma_1`, then :math:`\sigma_2`, and
    inner couplings :math:`T_1[b]`, :math:`T_2[b]` named by the block's place, the composition permutes blocks by
    :math:`\sigma_1 \circ \sigma_2` and has :math:`T_2[b] \cdot T_1[\sigma_2(b)]` inside block b: the product of a
    wreath product of groups.

    Parameters
    ----------
    groups
        All groups, fixed ones included.
    first, second
        Group name -> coupling; a missing one is the identity.

    Raises
    ------
    RecipeError
        Sizes do not match, or a block group's coupling is no permutation.
    """
    composed: dict[str, Coupling] = {}
    for orbit, origin in _walk_with_origins(groups, second):
        for place, group in enumerate(orbit.groups):
            source = orbit.groups[int(origin[place])]
            after, before = second.get(group.name), first.get(source.name)
            after = Coupling.identity(group.size) if after is None else after
            composed[group.name] = after if before is None else after.compose(before)
    return composed


def invert(groups: ChannelGroups | Sequence[ChannelGroup], couplings: Couplings) -> dict[str, Coupling]:
    """Couplings of all groups in the other direction: composed with the given ones, permutations cancel.

    What lies inside block b of the target is inverted at the block's place in the source.

    Raises
    ------
    RecipeError
        A block group's coupling is no permutation.
    """
    inverted: dict[str, Coupling] = {}
    for orbit, origin in _walk_with_origins(groups, couplings):
        for place, group in enumerate(orbit.groups):
            coupling = couplings.get(group.name)
            source = orbit.groups[int(origin[place])]
            inverted[source.name] = Coupling.identity(group.size) if coupling is None else coupling.inverse()
    return inverted


def flat_positions(root: Orbit, couplings: Couplings) -> dict[str, Tensor] | None:
    """Orbit name -> where each flat position comes from (int64, on the CPU); None where a coupling is soft."""
    moved: dict[str, Tensor] = {}
    for orbit, origin in _origins(root, couplings, torch.zeros(len(root.groups), dtype=torch.int64)):
        own = [couplings.get(group.name) for group in orbit.groups]
        if any(coupling is not None and coupling.permutation is None for coupling in own):
            return None
        moved[orbit.name] = _flat(orbit, own, origin)
    return moved


def from_flat_positions(root: Orbit, moved: Mapping[str, Tensor]) -> dict[str, Coupling]:
    """Couplings (group name -> permutation) that move flat positions so; the inverse of `flat_positions`."""
    return {
        group.name: Coupling(order % orbit.size)
        for orbit in root.walk()
        for group, order in zip(orbit.groups, moved[orbit.name].reshape(-1, orbit.size), strict=True)
    }


def _walk_with_origins(
    groups: ChannelGroups | Sequence[ChannelGroup], couplings: Couplings
) -> Iterator[tuple[Orbit, Tensor]]:
    for root in find_orbits(tuple(groups)):
        yield from _origins(root, couplings, torch.zeros(1, dtype=torch.int64))


def _origins(orbit: Orbit, couplings: Couplings, origin: Tensor) -> Iterator[tuple[Orbit, Tensor]]:
    """Each orbit with the number of the group (n_groups,) that comes to each place."""
    yield orbit, origin
    if not orbit.children:
        return
    own = [couplings.get(group.name) for group in orbit.groups]
    for group, coupling in zip(orbit.groups, own, strict=True):
        if coupling is not None and coupling.permutation is None:
            raise RecipeError(f"the blocks of {group.name} can only be permuted, not mixed: groups lie inside them")
    blocks = _flat(orbit, own, origin)
    for child in orbit.children:
        yield from _origins(child, couplings, blocks)


def _flat(orbit: Orbit, own: Sequence[Coupling | None], origin: Tensor) -> Tensor:
    orders = [
        torch.arange(orbit.size) if coupling is None or coupling.permutation is None else coupling.permutation.cpu()
        for coupling in own
    ]
    return (origin[:, None] * orbit.size + torch.stack(orders)).reshape(-1)
