"""Unbalanced optimal transport per group: soft couplings that leave out channels without a counterpart."""

from __future__ import annotations

from functools import partial

from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.interface import Solver, Transport
from depfuse.align.solvers.sinkhorn import softly
from depfuse.align.transport import unbalanced
from depfuse.recipe import Recipe


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match once per distance for activations; for weights, layer by layer."""
    return softly(problem, transports(problem.recipe)[0])


def transports(recipe: Recipe) -> list[Transport]:
    """Return unbalanced transport, for groups of any sizes."""
    return [partial(unbalanced, strictness=recipe.strictness)]


SOLVER = Solver(solve, criteria=("activations", "weights", "mixture"), transports=transports)
