"""Couplings of all groups at once by matching weights: coordinate descent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from depfuse.align.nested import Placement, as_it_stands, follow
from depfuse.groups.nesting import Orbit

State = Mapping[str, Tensor]
MAX_SWEEPS = 100


class Problem(Protocol):
    """What coordinate descent needs to know of a matching problem."""

    @property
    def roots(self) -> Sequence[Orbit]:
        """Orbits that lie in no block."""

    @property
    def source(self) -> State:
        """The state dict to be brought into the target's order."""

    def improve(self, root: Orbit, state: State, moved: Placement) -> Placement | None:
        """The best placement of one root's channels from where they stand; None where they stand best.

        Parameters
        ----------
        state
            The source as moved so far.
        moved
            Where the root's channels come from so far.
        """


def coordinate_descent(
    problem: Problem, orders: Iterable[Sequence[int]], start: Mapping[str, Placement] | None = None
) -> dict[str, Placement]:
    """Match root after root with all others held, until none improves (Ainsworth et al. 2023, algorithm 1).

    A root is matched again only where a tensor that it shares with others has changed since.

    Parameters
    ----------
    problem
        Costs and the matching of one root.
    orders
        One order of the roots per sweep; the last one is repeated until the end.
    start
        Root name -> placement to start from; as they stand where absent.

    Returns
    -------
    dict
        Root name -> placement.
    """
    roots = problem.roots
    found = {root.name: as_it_stands(root) for root in roots}
    state = dict(problem.source)
    for root in roots:
        if start is not None and root.name in start:
            found[root.name] = start[root.name]
            state = root.permute(state, start[root.name])
    keys = [{part.key for orbit in root.walk() for part in orbit.parts} for root in roots]
    touching = [[other for other, theirs in enumerate(keys) if own & theirs] for own in keys]
    open_ = set(range(len(roots)))
    for sweep, order in enumerate(_repeated(orders)):
        if sweep >= MAX_SWEEPS or not open_:
            break
        for number in order:
            if number not in open_:
                continue
            root = roots[number]
            step = problem.improve(root, state, found[root.name])
            open_.discard(number)
            if step is not None:
                found[root.name] = follow(found[root.name], step)
                state = root.permute(state, step)
                open_.update(touching[number])
    return found


def _repeated(orders: Iterable[Sequence[int]]) -> Iterable[Sequence[int]]:
    last: Sequence[int] = ()
    for last in orders:
        yield last
    while True:
        yield last
