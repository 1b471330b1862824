"""Exact optimal transport per group; for weights layer by layer, then sweeps over all groups."""

from __future__ import annotations

from depfuse.align.coupling import Couplings
from depfuse.align.descent import SharedCosts
from depfuse.align.problem import DISTANCES_TRIED, MatchingProblem
from depfuse.align.solvers.coordinate_descent import descents, swept
from depfuse.align.solvers.interface import Solver
from depfuse.align.transport import emd


def solve(problem: MatchingProblem) -> list[Couplings]:
    """One solution per distance for activations; for weights, the swept one and the local optima of descents."""
    recipe = problem.recipe
    if recipe.criterion == "activations":
        distances = DISTANCES_TRIED if recipe.distance == "best" else (recipe.distance,)
        return [problem.by_activations(distance, emd) for distance in distances]
    shared = SharedCosts(problem)
    return [swept(shared), *descents(shared, recipe.restarts - 1)]


SOLVER = Solver(solve, criteria=("activations", "weights", "mixture"), universe=("activations", "weights", "mixture"))
