"""Coordinate descent on weights: all groups in turn until none improves (Ainsworth et al. 2023, Git Re-Basin)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from depfuse.align.coupling import Couplings
from depfuse.align.descent import Descent, SharedCosts
from depfuse.align.nested import Placement
from depfuse.align.problem import MatchingProblem
from depfuse.align.solvers.interface import Solver
from depfuse.align.solvers.start import start_of
from depfuse.errors import LimitWarning

# Multiply-adds after which no further descent is begun: about a second of two CPU cores. Networks so large have
# wide groups, whose local optima hardly differ.
WORK_LIMIT = 3e10


def solve(problem: MatchingProblem) -> list[Couplings]:
    """The local optima of descents from the recipe's start, or from the identity, in random orders of the groups.

    At most `restarts`; large networks get fewer (`WORK_LIMIT`).
    """
    shared = SharedCosts(problem)
    start = start_of(problem)
    if start is None:
        return descents(shared, problem.recipe.restarts)
    placed = problem.placements(start)
    order = list(range(len(problem.roots)))
    first = Descent(shared, placed)
    first.run([order])
    return [_finished(first), *descents(shared, problem.recipe.restarts - 1, placed)]


def descents(shared: SharedCosts, restarts: int, start: Mapping[str, Placement] | None = None) -> list[Couplings]:
    """Couplings of descents that visit the groups in random orders."""
    generator = torch.Generator().manual_seed(shared.problem.recipe.seed)
    found: list[Couplings] = []
    while len(found) < restarts and (shared.work < WORK_LIMIT or not shared.work):
        orders = [torch.randperm(len(shared.roots), generator=generator).tolist() for _ in range(16)]
        descent = Descent(shared, start)
        descent.run(orders)
        found.append(_finished(descent))
    return found


def swept(shared: SharedCosts) -> Couplings:
    """The solution layer by layer, then improved by sweeps over all slots in the same order."""
    descent = Descent(shared)
    descent.in_order()
    descent.run([list(range(len(shared.roots)))])
    return _finished(descent)


def _finished(descent: Descent) -> Couplings:
    if not descent.converged:
        warnings.warn(
            "coordinate descent still improved when its sweeps were over: the best result so far is used",
            LimitWarning,
            stacklevel=4,
        )
    return descent.couplings


SOLVER = Solver(
    solve,
    criteria=("weights", "mixture"),
    advice="matches weights: choose criterion weights or mixture, or solver emd or sinkhorn",
    starts=True,
    universe=("weights", "mixture"),
)
