"""Starts of iterative solvers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from depfuse.align.affinity import Candidates
from depfuse.align.coupling import Coupling
from depfuse.align.invariants import by_invariants
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution, at_limit
from depfuse.align.solvers import load_solver
from depfuse.align.solvers.rounding import completed
from depfuse.align.transport import emd
from depfuse.align.trees import Placement
from depfuse.recipe.solvers import solver_settings


def start_of(problem: MatchingProblem, default: str = "none") -> Solution | None:
    """Compute the couplings that the recipe starts from, or the default's; None where that is `none`.

    `identity` leaves every channel where it is; `activations` is the assignment by activations alone; the name of a
    solver is its first solution.
    """
    settings = problem.solver.start_from
    start = default if settings.name == "none" else settings.name
    if start == "none":
        return None
    if start == "identity":
        return Solution({group.name: Coupling.identity(group.size) for group in problem.groups.free})
    if start == "activations":
        return Solution(problem.by_activations(problem.settings.distances[0], emd))
    start_settings = {name: value for name, value in settings if name != "name"}
    return load_solver(start).solve(problem.by(solver_settings(start, **start_settings)))[0]


def as_candidates(orders: Mapping[str, Tensor], like: Candidates) -> Candidates:
    """Give each pair of a permutation weight one."""
    return {name: torch.eye(len(order), dtype=torch.float32)[order].to(like[name]) for name, order in orders.items()}


def started(problem: MatchingProblem, uniform: Candidates) -> tuple[list[Candidates], tuple[str, ...]]:
    """Return the starting candidates, and the sentences of a solver behind them that did not converge.

    Where the recipe names a start, these are its couplings for the groups that they hold. Else they are uniform
    candidates and the assignment by invariants (`by_invariants`): ascent ends in a local optimum, and the better of
    the two counts.
    """
    start = start_of(problem)
    if start is None:
        return [uniform, _vertices(by_invariants(problem), uniform)], ()
    return [_vertices(problem.placements(start.couplings), uniform)], start.not_converged


def best_of_starts(
    problem: MatchingProblem,
    uniform: Candidates,
    iterations: int,
    ascend: Callable[[Candidates, int], tuple[dict[str, Tensor], float, bool]],
) -> list[Solution]:
    """Ascend from every start, and complete the permutations of the highest end.

    Parameters
    ----------
    uniform
        Candidates of equal weights, see `started`.
    iterations
        Limit of each ascent.
    ascend
        Maps starting candidates and the limit to permutations by group, what is maximised there, and whether it
        converged.
    """
    starts, not_converged = started(problem, uniform)
    with torch.no_grad():
        results = [ascend(start, iterations) for start in starts]
    permutations, _, converged = max(results, key=lambda entry: entry[1])
    not_converged += at_limit(problem.solver.name, iterations, unless=converged)
    return [Solution(completed(problem, permutations), not_converged)]


def _vertices(placed: Mapping[str, Placement], uniform: Candidates) -> Candidates:
    return {**uniform, **as_candidates({name: placed[name][name] for name in uniform if name in placed}, uniform)}
