"""Exact optimal transport per group; for weights layer by layer, then sweeps over all groups."""

from __future__ import annotations

from functools import partial

from depfuse.align.descent import SharedCosts
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.coordinate_descent import descents, from_invariants, swept
from depfuse.align.solvers.interface import Solver, Transport
from depfuse.align.transport import emd, whole
from depfuse.recipe import Recipe

MASSES: dict[str, list[Transport]] = {"whole": [whole], "equal": [emd], "free": [partial(whole, even=False)]}


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match once per distance for activations; for weights, by sweeps and by descents to local optima.

    One descent begins from invariants of the other groups' order.
    """
    recipe = problem.recipe
    if recipe.criterion == "activations":
        return [Solution(problem.by_activations(distance, emd), distance=distance) for distance in recipe.distances]
    shared = SharedCosts(problem)
    return [swept(shared), *descents(shared, recipe.restarts - 1), from_invariants(shared)]


def transports(recipe: Recipe) -> list[Transport]:
    """Return exact transport between groups of unequal sizes, with masses as the recipe says."""
    return [way for masses, ways in MASSES.items() if recipe.masses in ("best", masses) for way in ways]


SOLVER = Solver(
    solve,
    criteria=("activations", "weights", "mixture"),
    transports=transports,
    universe=("activations", "weights", "mixture"),
)
