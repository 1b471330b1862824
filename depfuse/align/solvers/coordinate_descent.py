"""Coordinate descent on weights: all groups in turn until none improves (Ainsworth et al. 2023, Git Re-Basin)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from depfuse.align.descent import Descent, SharedCosts
from depfuse.align.invariants import by_invariants
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution, distinct
from depfuse.align.solvers.interface import Implementation
from depfuse.align.solvers.start import start_of
from depfuse.align.trees import Placement
from depfuse.recipe.solvers import CoordinateDescent

# Multiply-adds after which no further descent is started: about a second of two CPU cores. Larger networks have wide
# groups, whose local optima hardly differ.
WORK_LIMIT = 3e10


def solve(problem: MatchingProblem) -> list[Solution]:
    """Find local optima of descents from the recipe's start, or from the identity, in random orders of the groups.

    At most `restarts`; large networks get fewer (`WORK_LIMIT`). Without a start there is one more, from invariants.
    """
    shared = SharedCosts(problem)
    start = start_of(problem)
    if start is None:
        return with_invariants(shared, descents(shared, problem.settings_of(CoordinateDescent).restarts))
    placed = problem.placements(start.couplings)
    first = _run_in_order(shared, placed)
    first = replace(first, not_converged=distinct((*start.not_converged, *first.not_converged)))
    return [first, *descents(shared, problem.settings_of(CoordinateDescent).restarts - 1, placed)]


def from_invariants(
    shared: SharedCosts, others: Sequence[Solution] = (), work_limit: float = WORK_LIMIT
) -> Solution | None:
    """Find the local optimum near the assignment by weights that no order of the other groups changes.

    Blocks, to which that does not apply, are matched first. In networks of over `work_limit` multiply-adds the descent
    ends after a sweep that leaves it farther than others have come, and finds none: of a permuted copy it is the
    nearest by then.
    """
    roots = shared.roots
    order = sorted(range(len(roots)), key=lambda number: not roots[number].children)
    descent = Descent(shared, by_invariants(shared.problem))
    if others and shared.work > work_limit and not shared.problem.watched:
        descent.run([order], sweeps=1)
        distance = shared.problem.distance
        if distance(descent.couplings) > min(distance(other.couplings) for other in others):
            return None
    descent.run([order])
    return _finished(descent)


def with_invariants(shared: SharedCosts, others: Sequence[Solution], work_limit: float = WORK_LIMIT) -> list[Solution]:
    """Add the local optimum of `from_invariants` to others, where it finds one."""
    found = from_invariants(shared, others, work_limit)
    return [*others] if found is None else [*others, found]


def _run_in_order(shared: SharedCosts, placed: Mapping[str, Placement]) -> Solution:
    descent = Descent(shared, placed)
    descent.run([list(range(len(shared.roots)))])
    return _finished(descent)


def descents(shared: SharedCosts, restarts: int, start: Mapping[str, Placement] | None = None) -> list[Solution]:
    """Run descents that visit the groups in random orders."""
    generator = torch.Generator().manual_seed(shared.problem.seed)
    solutions: list[Solution] = []
    while len(solutions) < restarts and (shared.work < WORK_LIMIT or not shared.work):
        orders = [torch.randperm(len(shared.roots), generator=generator).tolist() for _ in range(16)]
        descent = Descent(shared, start)
        descent.run(orders)
        solutions.append(_finished(descent))
    return solutions


def swept(shared: SharedCosts) -> Solution:
    """Match layer by layer, then improve by sweeps over all slots in the same order."""
    descent = Descent(shared)
    descent.in_order()
    descent.run([list(range(len(shared.roots)))])
    return _finished(descent)


def _finished(descent: Descent) -> Solution:
    limit = "coordinate descent still improved when its sweeps were over: the best result so far is used"
    return Solution(descent.couplings, () if descent.converged else (limit,))


SOLVER = Implementation(solve)
