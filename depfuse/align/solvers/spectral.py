"""Spectral matching: the principal eigenvector of the affinities, then one assignment per group."""

from __future__ import annotations

import torch

from depfuse.align.affinity import Affinity, Candidates
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution, at_limit
from depfuse.align.solvers.interface import Implementation
from depfuse.align.solvers.rounding import QUICKER, affinity_of, assign, completed
from depfuse.networks.stopwatch import Stopwatch
from depfuse.progress import work
from depfuse.recipe.solvers import Spectral

TOLERANCE = 1e-5  # mean change per channel and group in a step, below which the iteration has converged


def principal(affinity: Affinity, start: Candidates, iterations: int) -> tuple[Candidates, bool]:
    r"""Run power iteration :math:`x \leftarrow (M x + u) / \|M x + u\|_1`; return the vector and whether it converged.

    M are the affinities between candidates, u the support by fixed nodes, whose candidates have weight one.
    Each group's candidates are scaled to sum to its number of channels: the norm of the whole vector, which is usual
    for a single group, would let the groups with most edges dominate.
    (Leordeanu & Hebert 2005, section 2; Liu et al. 2022.)
    """
    weights = start

    def cost() -> float:
        return iterations * affinity.seconds(start, Stopwatch(affinity.device))

    for _ in work().track(range(iterations), "computing the principal eigenvector of affinities", QUICKER, cost):
        support = affinity.support(weights)
        moved = {name: value * (len(value) / value.sum()) for name, value in support.items()}
        change = sum(float((moved[name] - weights[name]).abs().sum()) / len(moved[name]) for name in moved)
        weights = moved
        if change <= TOLERANCE * len(moved):
            return weights, True
    return weights, False


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match once, by the principal eigenvector."""
    iterations = problem.settings_of(Spectral).iterations
    affinity = affinity_of(problem)
    with torch.no_grad():
        weights, converged = principal(affinity, affinity.uniform(), iterations)
    orders = assign(weights)
    not_converged = at_limit("spectral", iterations, unless=converged)
    return [Solution(completed(problem, orders), not_converged)]


SOLVER = Implementation(solve)
