"""Criterion and solver to one coupling per group and parent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from depfuse.align.coupling import Coupling, Couplings
from depfuse.align.moments import Moments, collect_moments
from depfuse.align.problem import MatchingProblem
from depfuse.align.solvers import load_solver
from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.recipe import Recipe

Judge = Callable[[int, Couplings], float]


def align(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    recipe: Recipe,
    calibration: Loader | None,
    judge: Judge | None = None,
) -> list[Couplings]:
    """One coupling per free group for every parent, towards the channel order of parent 0.

    Parameters
    ----------
    models
        Parents with equal parameter shapes.
    groups
        Their common channel groups.
    recipe
        Criterion, solver and their settings.
    calibration
        Images for the activation cost; not read for criterion `weights`.
    judge
        (parent number, couplings) -> how bad the child of parent 0 and that parent is, without labels. It chooses
        where there are several solutions; without it the lowest weight distance does, or the first distance tried.

    Returns
    -------
    list of mapping
        Group name -> coupling, per parent; identities for parent 0.

    Raises
    ------
    RecipeError
        Activations are asked for without images, or the solver does not serve the criterion.
    """
    solver = load_solver(recipe.solver)
    if recipe.criterion not in solver.criteria:
        raise RecipeError(f"solver {recipe.solver} {solver.advice}")
    if recipe.start != "none" and not solver.starts:
        raise RecipeError(f"solver {recipe.solver} takes no start: leave it out, or choose coordinate-descent")
    moments: list[dict[str, list[Moments]]] = [{} for _ in models[1:]]
    if calibration is None and (recipe.criterion != "weights" or recipe.start == "activations" or solver.needs_images):
        what = f"criterion {recipe.criterion}" if recipe.criterion != "weights" else f"solver {recipe.solver}"
        raise RecipeError(f"{what} needs calibration images: give at least 2")
    if calibration is not None and (recipe.criterion != "weights" or recipe.start == "activations"):
        moments = collect_moments(models, groups, calibration, recipe.taps)
    couplings: list[Couplings] = [{group.name: Coupling.identity(group.size) for group in groups.free}]
    for number, (model, found) in enumerate(zip(models[1:], moments, strict=True), start=1):
        problem = MatchingProblem(groups, (models[0], model), recipe, found, calibration)
        candidates = _distinct(solver.solve(problem))
        if len(candidates) == 1:
            couplings.append(candidates[0])
        elif judge is not None:
            couplings.append(min(candidates, key=partial(judge, number)))
        elif recipe.criterion == "activations":
            couplings.append(candidates[0])
        else:
            couplings.append(min(candidates, key=problem.distance))
    return couplings


def _distinct(candidates: Sequence[Couplings]) -> list[Couplings]:
    """Candidates that differ, in their order."""
    found: list[Couplings] = []
    for candidate in candidates:
        if not any(all(_equal(candidate[name], known[name]) for name in known) for known in found):
            found.append(candidate)
    return found


def _equal(first: Coupling, second: Coupling) -> bool:
    if first.permutation is not None and second.permutation is not None:
        return torch.equal(first.permutation, second.permutation)
    return first.plan is second.plan
