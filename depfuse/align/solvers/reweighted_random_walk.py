"""Reweighted random walks on the graph of candidates (Cho et al. 2010)."""

from __future__ import annotations

import torch
from torch import Tensor

from depfuse.align.affinity import Affinity, Candidates
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution, at_limit
from depfuse.align.solvers.interface import Implementation
from depfuse.align.solvers.rounding import QUICKER, affinity_of, assign, completed
from depfuse.networks.stopwatch import Stopwatch
from depfuse.progress import work
from depfuse.recipe.solvers import ReweightedRandomWalk

SINKHORN_STEPS = 20  # scalings of rows or columns in a jump, whose sums need not be exact
TOLERANCE = 1e-5  # norm of a step, relative to a group's number of channels, below which the walk has converged


def walk(affinity: Affinity, start: Candidates, settings: ReweightedRandomWalk) -> tuple[Candidates, bool]:
    """Run the random walk; return its distribution (each group's candidates sum to one), and whether it converged.

    Each step walks along affinities, and jumps to candidates inflated by an exponential and scaled to row and column
    sums of one (Cho et al. 2010, algorithm 1). Each group has its own walker, which the others attract.
    """
    weights = start
    steps = range(settings.iterations)

    def cost() -> float:
        watch = Stopwatch(affinity.device)
        scaling = sum(watch.seconds(torch.logsumexp, value, 1) for value in start.values())
        return len(steps) * (affinity.seconds(start, watch) + SINKHORN_STEPS * scaling)

    for _ in work().track(steps, "walking at random among candidates", QUICKER, cost):
        support = affinity.support(weights)
        walked = {name: value / value.sum() for name, value in support.items()}
        moved, change = {}, 0.0
        for name, value in walked.items():
            jump = doubly_stochastic(settings.inflation * value / value.max(), SINKHORN_STEPS)
            mixed = settings.jumps * jump + (1.0 - settings.jumps) * value
            moved[name] = mixed / mixed.sum() * len(value)
            change = max(change, float((moved[name] - weights[name]).norm()) / len(value))
        weights = moved
        if change <= TOLERANCE:
            return weights, True
    return weights, False


def doubly_stochastic(logits: Tensor, steps: int) -> Tensor:
    """Scale exp(logits) to row and column sums of one by Sinkhorn's iteration, in the log domain."""
    for step in range(steps):
        logits = logits - torch.logsumexp(logits, 1 - step % 2, keepdim=True)
    return logits.exp()


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match once, by the random walk."""
    settings = problem.settings_of(ReweightedRandomWalk)
    affinity = affinity_of(problem)
    with torch.no_grad():
        weights, converged = walk(affinity, affinity.uniform(), settings)
    orders = assign(weights)
    not_converged = at_limit("reweighted-random-walk", settings.iterations, unless=converged)
    return [Solution(completed(problem, orders), not_converged)]


SOLVER = Implementation(solve)
