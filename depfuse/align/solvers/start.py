"""Where an iterative solver starts from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from depfuse.align.affinity import Candidates
from depfuse.align.coupling import Coupling, Couplings
from depfuse.align.problem import MatchingProblem
from depfuse.align.solvers import load_solver
from depfuse.align.transport import emd


def start_of(problem: MatchingProblem, default: str = "none") -> Couplings | None:
    """The couplings that the recipe says to start from, or the default; None where that is `none`.

    `identity` leaves every channel where it is; `activations` is the assignment by activations alone; the name of a
    solver is its first solution.
    """
    start = default if problem.recipe.start == "none" else problem.recipe.start
    if start == "none":
        return None
    if start == "identity":
        return {group.name: Coupling.identity(group.size) for group in problem.groups.free}
    if start == "activations":
        return problem.by_activations(problem.recipe.distances[0], emd)
    return load_solver(start).solve(problem)[0]


def as_candidates(orders: Mapping[str, Tensor], like: Candidates) -> Candidates:
    """Weight one at each pair of a permutation."""
    return {name: torch.eye(len(order), dtype=torch.float32)[order].to(like[name]) for name, order in orders.items()}


def started(problem: MatchingProblem, uniform: Candidates) -> Candidates:
    """Uniform candidates, or the couplings that the recipe says to start from for the groups that they hold."""
    given = start_of(problem)
    if given is None:
        return uniform
    placed = problem.placements(given)
    return {**uniform, **as_candidates({name: placed[name][name] for name in uniform if name in placed}, uniform)}
