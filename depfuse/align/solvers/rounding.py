"""Rounding of soft candidates to permutations, shared by solvers of all groups at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from depfuse.align.affinity import Affinity, seconds_of_building
from depfuse.align.coupling import Couplings
from depfuse.align.descent import Descent, SharedCosts
from depfuse.align.problem import MatchingProblem
from depfuse.align.transport import assigned
from depfuse.networks.stopwatch import Stopwatch
from depfuse.progress import work

QUICKER = "solvers emd and coordinate-descent take seconds"


def affinity_of(problem: MatchingProblem) -> Affinity:
    """Build the affinities between candidates by the problem's criterion."""
    edges = problem.edges
    cost = partial(seconds_of_building, edges, Stopwatch(edges[0].target.device)) if edges else None
    # Not counted: of a network that widens, the pace of the first tensors says nothing of the last ones.
    affinity = Affinity(work().track(iter(edges), "computing affinities", QUICKER, cost))
    if problem.settings.criterion.name == "mixture":
        affinity.mix(problem.watched, problem.settings.share)
    return affinity


def foretold(description: str, iterations: int, usual: int, device: torch.device) -> Iterator[int]:
    """Count the steps of an ascent that converges long before its limit; foretell it by the mean of the first two.

    The first, from candidates of equal weights, takes longer than others (of two ResNet50s 4.9 CPU seconds, and all 2.8
    in the mean), and the second less.

    Parameters
    ----------
    description
        Of the ascent.
    iterations
        Limit of steps.
    usual
        Steps that it takes.
    device
        Computes them.
    """
    work().step(description)
    work().advise(QUICKER)
    watch = Stopwatch(device)
    started = watch.now()
    for number in range(iterations):
        yield number
        if number == 1:
            work().foretell(min(iterations, usual) * (watch.now() - started) / 2)


def assign(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round each group to the permutation of largest weight."""
    return {name: assigned(-value) for name, value in weights.items()}


def completed(problem: MatchingProblem, permutations: Mapping[str, Tensor]) -> Couplings:
    """Complete the couplings: match blocks that hold groups, and groups without edges, given the others."""
    placed = {name: {name: order} for name, order in permutations.items()}
    rest = [number for number, root in enumerate(problem.roots) if root.name not in permutations]
    if not rest:
        return problem.couplings(placed)
    descent = Descent(SharedCosts(problem), placed)
    descent.run([rest])
    return descent.couplings
