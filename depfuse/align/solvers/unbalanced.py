"""Unbalanced optimal transport per group: soft couplings that leave out channels without a counterpart."""

from __future__ import annotations

from functools import partial

from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.interface import Implementation, Transport
from depfuse.align.solvers.sinkhorn import softly
from depfuse.align.transport import unbalanced
from depfuse.recipe.solvers import Solver, Unbalanced


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match once per distance for activations; for weights, layer by layer."""
    return softly(problem, transports(problem.solver)[0])


def transports(settings: Solver) -> list[Transport]:
    """Return unbalanced transport, for groups of any sizes."""
    assert isinstance(settings, Unbalanced)
    return [partial(unbalanced, strictness=settings.strictness)]


SOLVER = Implementation(solve, transports=transports)
