"""Alignment of all parents by criterion and solver: one coupling per group and parent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

from torch import nn

from depfuse.align.choice import choose, choose_by_group
from depfuse.align.coupling import Coupling, Couplings, compose, invert
from depfuse.align.judge import Judge
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Alignment, distinct
from depfuse.align.solvers import load_solver
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.shared import SharedMoments
from depfuse.align.statistics.sums import Moments
from depfuse.align.statistics.taps import TapChoice
from depfuse.align.universe import align_through_universe
from depfuse.data.loader import Loader
from depfuse.errors import LimitWarning, RecipeError
from depfuse.groups import ChannelGroups
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.isolation import isolated
from depfuse.recipe.criteria import Activations, Distance, Mixture, TapPosition
from depfuse.recipe.sections import Align
from depfuse.recipe.solvers import CoordinateDescent


@isolated()
def align(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    settings: Align,
    calibration: Loader | None,
    judge: Judge | None = None,
    shared: SharedMoments | None = None,
    *,
    shares: Sequence[float] | None = None,
    seed: int = 0,
) -> Alignment:
    """Match every parent's channels, one coupling per free group, towards the channel order of the recipe's parent.

    All parents are matched to one of them, the reference, or with `align.through` universe through one universe.

    Parameters
    ----------
    models
        Parents with equal parameter shapes.
    groups
        Their common channel groups.
    settings
        Criterion, solver, and the reference or universe that parents are matched to.
    calibration
        Images for the activation cost; not read for criterion `weights`.
    judge
        Loss of the child of the reference and another parent, without labels. It chooses among several solutions;
        without it the lowest weight distance does, or the first distance tried.
    shared
        Cache of these parents' moments from other fusions.
    shares
        One per parent, for a universe and for solvers that change all parents; equal ones where None.
    seed
        Of random orders.

    Returns
    -------
    Alignment
        Group name -> coupling, per parent; identities for the one whose channel order is kept. It holds what stopped
        at its limit, with a warning.

    Warns
    -----
    LimitWarning
        A solver stopped at its limit before it converged.

    Raises
    ------
    RecipeError
        Activations are asked for without images, the solver does not serve the criterion, or a parent is not there.
    """
    originals, models = models, [evaluation_copy(model, shared=True) for model in models]
    shared = None if shared is None else shared.for_copies(originals, models)
    alignment = _alignment(models, groups, settings, calibration, judge, shared, shares, seed)
    for sentence in alignment.not_converged:
        warnings.warn(sentence, LimitWarning, stacklevel=3)
    return alignment


def _alignment(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    settings: Align,
    calibration: Loader | None,
    judge: Judge | None,
    shared: SharedMoments | None,
    shares: Sequence[float] | None,
    seed: int,
) -> Alignment:
    settings.check_numbers(len(models))
    solver, criterion = settings.solver, settings.criterion.name
    if criterion not in solver.criteria:
        raise RecipeError(f"solver {solver.name} {solver.advice}")
    if calibration is None and (settings.watches or solver.needs_images):
        what = f"criterion {criterion}" if criterion != "weights" else f"solver {solver.name}"
        raise RecipeError(f"{what} needs calibration images: give at least 2")
    if settings.through.name == "universe":
        return align_through_universe(models, groups, settings, calibration, judge, shares=shares, seed=seed)
    if (solve_jointly := load_solver(solver.name).solve_jointly) is not None:
        assert calibration is not None
        each = shares or [1.0 / len(models)] * len(models)
        return Alignment(_in_order_of(groups, solve_jointly(models, groups, settings, calibration, each), settings))
    reference = settings.target
    others = [number for number in range(len(models)) if number != reference]
    variants = _variants(settings)
    moments: dict[TapChoice, list[dict[str, list[Moments]]]] = {
        variant.taps: [{} for _ in others] for variant in variants
    }
    if calibration is not None and settings.watches:
        ordered = [models[number] for number in (reference, *others)]
        collect = collect_moments if shared is None else shared.collect
        moments = {taps: collect(ordered, groups, calibration, taps) for taps in moments}
    couplings: list[Couplings] = [{group.name: Coupling.identity(group.size) for group in groups.free} for _ in models]
    not_converged: list[str] = []
    tried: list[str] = []
    for place, number in enumerate(others):
        pair = models[reference], models[number]
        problems = [
            MatchingProblem(groups, pair, variant, moments[variant.taps][place], calibration, seed=seed)
            for variant in variants
        ]
        solutions = [solved for problem in problems for solved in load_solver(problem.solver.name).solve(problem)]
        not_converged += [sentence for solution in solutions for sentence in solution.not_converged]
        candidates = [solution.couplings for solution in solutions]
        if judge is None and criterion == "activations":
            couplings[number] = candidates[0]
            tried += [solutions[0].distance or ""]
            continue
        figure = problems[0].distance if judge is None else partial(judge, number)
        if settings.choose == "groups":
            units = [[g.name for orbit in root.walk() for g in orbit.groups] for root in problems[0].roots]
            couplings[number] = choose_by_group(candidates, units, figure)
        else:
            couplings[number] = choose(candidates, figure)
            tried += [solution.distance or "" for solution in solutions if solution.couplings is couplings[number]]
    return Alignment(_in_order_of(groups, couplings, settings), distinct(not_converged), distinct(filter(None, tried)))


def _variants(settings: Align) -> list[Align]:
    """List the recipe and, for a choice by group of matchings by activations, alternatives for single groups."""
    compared = settings.criterion
    if settings.choose != "groups" or type(compared) is not Activations:
        return [settings]
    taps: TapPosition = "after" if compared.taps == "both" else "both"
    other = settings.model_copy(update={"criterion": compared.model_copy(update={"taps": taps})})
    distances: tuple[Distance, ...] = ("pearson", "scaled")
    mixtures = [
        settings.model_copy(
            update={
                "criterion": Mixture(distance=distance, taps=compared.taps, share=share),
                "solver": CoordinateDescent(restarts=1),
            }
        )
        for distance in distances
        for share in (0.2, 0.5, 0.8)
    ]
    return [settings, other, *mixtures]


def _in_order_of(groups: ChannelGroups, couplings: list[Couplings], settings: Align) -> list[Couplings]:
    """Compose the couplings so that they lead to the channel order of the recipe's parent."""
    parent = settings.kept
    if parent == settings.target:
        return couplings
    if any(coupling.permutation is None for coupling in couplings[parent].values()):
        raise RecipeError(
            f"soft couplings cannot be brought to the order of parent {parent + 1}: leave out align.order, or choose "
            "solver emd"
        )
    back = invert(groups, couplings[parent])
    return [compose(groups, one_parents, back) for one_parents in couplings]
