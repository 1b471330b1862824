"""Integer projected fixed point (Leordeanu et al. 2009)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from depfuse.align.affinity import Affinity, Candidates, inner
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.interface import Implementation
from depfuse.align.solvers.rounding import QUICKER, affinity_of, assign
from depfuse.align.solvers.start import as_candidates, best_of_starts
from depfuse.networks.stopwatch import Stopwatch
from depfuse.progress import work
from depfuse.recipe.solvers import Ipfp

TOLERANCE = 1e-6  # relative change of the score in a step, below which the iteration has converged


def fixed_point(affinity: Affinity, start: Candidates, iterations: int) -> tuple[dict[str, Tensor], float, bool]:
    """Maximise the score; return the best permutations, their score, and whether the iteration converged.

    The score is x'Mx + 2 u'x. Each step goes towards the permutations that are best for the linearised score, as far
    as the score rises on the way, which is a parabola (Leordeanu et al. 2009, algorithm 1).
    """
    weights = start
    best: tuple[float, dict[str, Tensor]] | None = None
    last = None

    def cost() -> float:
        # `support` is computed three times in a step.
        return iterations * 3 * affinity.seconds(start, Stopwatch(affinity.device))

    for _ in work().track(range(iterations), "searching the fixed point of affinities", QUICKER, cost):
        support = affinity.support(weights)
        orders = assign(support)
        vertex = as_candidates(orders, weights)
        support_there = affinity.support(vertex)
        score = inner(support_there, vertex) + inner(affinity.standing, vertex)
        if best is None or score > best[0]:
            best = score, orders
        step = {name: vertex[name] - weights[name] for name in weights}
        slope = inner(support, step)
        bend = inner(support_there, step) - slope
        length = 1.0 if bend >= 0 else min(1.0, -slope / bend)
        weights = {name: weights[name] + length * step[name] for name in weights}
        reached = inner(affinity.support(weights), weights) + inner(affinity.standing, weights)
        if last is not None and abs(reached - last) <= TOLERANCE * abs(last):
            return best[1], best[0], True
        last = reached
    assert best is not None
    return best[1], best[0], False


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match from uniform candidates and from invariants and keep the best, or match from the recipe's start."""
    affinity = affinity_of(problem)
    iterations = problem.settings_of(Ipfp).iterations
    return best_of_starts(problem, affinity.uniform(), iterations, partial(fixed_point, affinity))


SOLVER = Implementation(solve)
