"""Exact optimal transport per group; for weights layer by layer, then sweeps over all groups."""

from __future__ import annotations

from functools import partial

from depfuse.align.descent import SharedCosts
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.coordinate_descent import descents, swept, with_invariants
from depfuse.align.solvers.interface import Implementation, Transport
from depfuse.align.transport import emd, whole
from depfuse.recipe.solvers import ByTransport, Emd, Solver

MASSES: dict[str, list[Transport]] = {"whole": [whole], "equal": [emd], "free": [partial(whole, even=False)]}


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match once per distance for activations; for weights, by sweeps and by descents to local optima.

    One descent begins from invariants of the other groups' order.
    """
    settings = problem.settings
    if settings.criterion.name == "activations":
        return [Solution(problem.by_activations(distance, emd), distance=distance) for distance in settings.distances]
    shared = SharedCosts(problem)
    return with_invariants(shared, [swept(shared), *descents(shared, problem.settings_of(Emd).restarts - 1)])


def transports(settings: Solver) -> list[Transport]:
    """Return exact transport between groups of unequal sizes, with the recipe's masses."""
    chosen = settings.masses if isinstance(settings, ByTransport) else "best"
    return [way for masses, ways in MASSES.items() if chosen in ("best", masses) for way in ways]


SOLVER = Implementation(solve, transports=transports)
