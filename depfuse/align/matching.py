"""Couplings of all groups at once by matching weights: coordinate descent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from depfuse.align.coupling import Coupling
from depfuse.align.transport import emd, transport_cost
from depfuse.groups import ChannelGroup

State = Mapping[str, Tensor]
CostOf = Callable[[ChannelGroup, State, Tensor], Tensor]
MAX_SWEEPS = 100


def coordinate_descent(
    groups: Sequence[ChannelGroup],
    source: State,
    cost_of: CostOf,
    orders: Iterable[Sequence[int]],
    start: Mapping[str, Tensor] | None = None,
) -> dict[str, Coupling]:
    """Match group after group with all others held, until no group improves (Ainsworth et al. 2023, algorithm 1).

    Each step solves one group's linear assignment exactly, so the total cost never rises and the descent ends.

    Parameters
    ----------
    groups
        Free groups.
    source
        The state dict to be brought into the target's order.
    cost_of
        (group, source as permuted so far, the group's permutation so far) -> (n, n) cost between target and present
        source channels.
    orders
        One order of the groups per sweep; the last one is repeated until the end.
    start
        Permutations to start from; identity where absent.
    """
    found = {group.name: torch.arange(group.size) for group in groups}
    state = dict(source)
    for group in groups:
        if start is not None and group.name in start:
            found[group.name] = start[group.name]
            state = group.permute(state, start[group.name])
    settled: set[str] = set()
    for sweep, order in enumerate(_repeated(orders)):
        if sweep >= MAX_SWEEPS or len(settled) == len(groups):
            break
        for number in order:
            group = groups[number]
            cost = cost_of(group, state, found[group.name])
            coupling = emd(cost)
            before = transport_cost(cost, Coupling.identity(group.size))
            if before - transport_cost(cost, coupling) <= 1e-9 * max(abs(before), 1e-12):
                settled.add(group.name)
                continue
            assert coupling.permutation is not None
            found[group.name] = found[group.name][coupling.permutation]
            state = group.permute(state, coupling.permutation)
            settled = {group.name}
    return {name: Coupling(permutation) for name, permutation in found.items()}


def _repeated(orders: Iterable[Sequence[int]]) -> Iterable[Sequence[int]]:
    last: Sequence[int] = ()
    for last in orders:
        yield last
    while True:
        yield last
