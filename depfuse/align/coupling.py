"""Couplings: for each group, the share of each source channel in each target channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroup, ChannelGroups, Slot
from depfuse.groups.nesting import Orbit, find_orbits
from depfuse.groups.slots import Role

ROLES: tuple[Role, Role] = ("produces", "consumes")


@dataclass(frozen=True, eq=False)
class Maps:
    """Two linear maps from a group's source channels to its target channels, (n_target, n_source) float64 each.

    The smallest example is `Linear(3, 2), Linear(2, 1)` whose two hidden channels are mixed by an invertible T. The
    first weight and its bias are multiplied by T; the columns of the second weight by the transposed inverse of T,
    which undoes the mixing, so that the function stays the same.

    Attributes
    ----------
    produces
        Map of rows of weights, biases and means, which produce or scale the channels.
    consumes
        Map of the weights that consume the channels.
    """

    produces: Tensor
    consumes: Tensor

    def __post_init__(self) -> None:
        if self.produces.shape != self.consumes.shape:
            raise ValueError(f"maps of shapes {tuple(self.produces.shape)} and {tuple(self.consumes.shape)} differ")


@dataclass(frozen=True, eq=False)
class Coupling:
    """A group's coupling: the source of each target channel.

    Exactly one of the three is set.

    Attributes
    ----------
    permutation
        (n,) int64: target channel i is source channel permutation[i].
    plan
        (n_target, n_source), non-negative, total mass 1: the mass that source channel j sends to target
        channel i (a transport plan between uniform masses).
    maps
        Any linear maps, one for slots that produce channels and one for those that consume them.
    not_converged
        A sentence where the solver's iteration stopped at its limit.
    """

    permutation: Tensor | None = None
    plan: Tensor | None = None
    maps: Maps | None = None
    not_converged: str | None = None

    def __post_init__(self) -> None:
        if sum(kind is not None for kind in (self.permutation, self.plan, self.maps)) != 1:
            raise ValueError("a coupling is either a permutation, a plan or a pair of maps")

    @classmethod
    def identity(cls, size: int) -> Coupling:
        """Couple every channel to itself."""
        return cls(torch.arange(size))

    @property
    def sizes(self) -> tuple[int, int]:
        """Sizes (n_target, n_source)."""
        if self.permutation is not None:
            return len(self.permutation), len(self.permutation)
        matrix = self.maps.produces if self.plan is None and self.maps is not None else self.plan
        assert matrix is not None
        return matrix.shape[0], matrix.shape[1]

    @property
    def matrix(self) -> Tensor:
        """Plan (n_target, n_source), float64; a permutation has 1/n at each of its pairs.

        For maps, the absolute values of `produces`, normalised to mass 1.
        """
        if self.plan is not None:
            return self.plan
        if self.maps is not None:
            sizes = self.maps.produces.abs()
            return sizes / sizes.sum().clamp_min(1e-300)
        assert self.permutation is not None
        size = len(self.permutation)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix[torch.arange(size), self.permutation.cpu()] = 1.0 / size
        return matrix

    def mixing(self, role: Role) -> Tensor:
        """Return the linear map of source to target channels in slots of a role, (n_target, n_source), float64.

        By a plan, a target channel is the average of its sources (rows sum to one) where the slot produces or scales
        it. Where the slot consumes it, each source's incoming weight is divided among its targets (columns sum to
        one), so that no input is counted twice. (Singh & Jaggi 2020, section 3.)
        """
        if self.maps is not None:
            return self.maps.consumes if role == "consumes" else self.maps.produces
        matrix = self.matrix
        return matrix / matrix.sum(0 if role == "consumes" else 1, keepdim=True).clamp_min(1e-300)

    def inverse(self) -> Coupling:
        """Invert the coupling; for maps, `consumes` becomes `produces`."""
        if self.permutation is not None:
            return Coupling(torch.argsort(self.permutation))
        if self.maps is not None:
            return Coupling(maps=Maps(self.maps.consumes.T, self.maps.produces.T))
        assert self.plan is not None
        return Coupling(plan=self.plan.T)

    def compose(self, other: Coupling) -> Coupling:
        """Compose with `other`: from `other`'s sources to this coupling's targets.

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
        if self.maps is not None or other.maps is not None:
            after, before = ([c.mixing(role) for role in ROLES] for c in (self, other))
            return Coupling(maps=Maps(*(a @ b.to(a) for a, b in zip(after, before, strict=True))))
        middle = self.sizes[1]
        return Coupling(plan=self.matrix @ other.matrix.to(self.matrix) * middle)

    def apply(self, slot: Slot, tensor: Tensor) -> Tensor:
        """Apply the coupling to the slot's channels of the source's tensor, as `mixing` says."""
        if self.permutation is not None:
            return slot.permute(tensor, self.permutation)
        return slot.write(tensor, self.mixing(slot.role).to(tensor.device, torch.float64) @ slot.read(tensor).double())


Couplings = Mapping[str, Coupling]


def apply_couplings(
    groups: ChannelGroups | Sequence[ChannelGroup], couplings: Couplings, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Apply couplings to a parent's state dict, so that each group's channels have the target's order.

    Blocks are moved first, then the groups inside each of them: an inner group's coupling permutes the block that has
    been moved to its place.

    Parameters
    ----------
    groups
        All groups; fixed ones stay.
    couplings
        Group name -> coupling; groups without one stay.
    state
        The parent's state dict.
    """
    aligned = dict(state)
    for root in find_orbits(groups):
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
    r"""Compose the couplings of all groups: `first`, then `second`.

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
    """Invert the couplings of all groups: composed with the given ones, permutations cancel.

    Groups inside block b of the target are inverted at the block's place in the source.

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
    """Map orbit name -> source of each flat position (int64, on the CPU); None where a coupling is soft."""
    moved: dict[str, Tensor] = {}
    for orbit, origin in _origins(root, couplings, torch.zeros(len(root.groups), dtype=torch.int64)):
        of_orbit = [couplings.get(group.name) for group in orbit.groups]
        if any(coupling is not None and coupling.permutation is None for coupling in of_orbit):
            return None
        moved[orbit.name] = _flat(orbit, of_orbit, origin)
    return moved


def from_flat_positions(root: Orbit, moved: Mapping[str, Tensor]) -> dict[str, Coupling]:
    """Make couplings (group name -> permutation) from flat positions; inverts `flat_positions`."""
    return {
        group.name: Coupling(order % orbit.size)
        for orbit in root.walk()
        for group, order in zip(orbit.groups, moved[orbit.name].reshape(-1, orbit.size), strict=True)
    }


def _walk_with_origins(
    groups: ChannelGroups | Sequence[ChannelGroup], couplings: Couplings
) -> Iterator[tuple[Orbit, Tensor]]:
    for root in find_orbits(groups):
        yield from _origins(root, couplings, torch.zeros(1, dtype=torch.int64))


def _origins(orbit: Orbit, couplings: Couplings, origin: Tensor) -> Iterator[tuple[Orbit, Tensor]]:
    """Yield each orbit with the number of the group (n_groups,) that comes to each place."""
    yield orbit, origin
    if not orbit.children:
        return
    of_orbit = [couplings.get(group.name) for group in orbit.groups]
    for group, coupling in zip(orbit.groups, of_orbit, strict=True):
        if coupling is not None and coupling.permutation is None:
            raise RecipeError(
                f"the blocks of {group.name} can only be permuted, as groups lie inside them: choose solver emd"
            )
    blocks = _flat(orbit, of_orbit, origin)
    for child in orbit.children:
        yield from _origins(child, couplings, blocks)


def _flat(orbit: Orbit, couplings: Sequence[Coupling | None], origin: Tensor) -> Tensor:
    orders = [
        torch.arange(orbit.size) if coupling is None or coupling.permutation is None else coupling.permutation.cpu()
        for coupling in couplings
    ]
    return (origin[:, None] * orbit.size + torch.stack(orders)).reshape(-1)
