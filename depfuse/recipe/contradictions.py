"""Contradictions between the sections of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from depfuse.recipe.recipe import Recipe


def contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence for each pair of settings that exclude each other."""
    yield from _of_the_matching(recipe)
    yield from _of_the_merge(recipe)
    yield from _of_the_solver(recipe)
    if recipe.renorm.name == "data-free" and recipe.refits:
        yield "renorm data-free is for weights that are averaged: choose refit none, or another renorm"
    if recipe.goal.name == "best":
        yield from _of_a_family(recipe)
    if recipe.task.name == "none" and (recipe.learns or recipe.train.finetune):
        yield "task none knows nothing of outputs that a child could learn from: choose refit none, or another task"
    labelled, images = recipe.teach.labelled, recipe.calibration.images
    if labelled > images:
        yield f"teach.labelled {labelled} is more than the {images} calibration images: give more"
    if labelled and recipe.teach.head == "none":
        yield "labelled images are read for one head of all parents: leave out teach.head none"


def _of_the_matching(recipe: Recipe) -> Iterator[str]:
    align = recipe.align
    if align.solver.start_from.name == align.solver.name:
        yield f"start {align.solver.name} is the solver itself: name another one, or leave it out"
    if align.through.name == "universe" and align.choose == "groups":
        yield "a universe is chosen as a whole: leave out align.through universe, or align.choose groups"


def _of_the_merge(recipe: Recipe) -> Iterator[str]:
    merge, images = recipe.merge, recipe.calibration.images
    if merge.partly and recipe.renorm.parents:
        yield (
            f"renorm {recipe.renorm.name} is for channels that are all merged: choose reset, or keep none side by side"
        )
    if merge.weights_by != "network" and images < 4:
        yield f"weights_by {merge.weights_by} needs at least 4 calibration images, not {images}: give 1000"
    if merge.average == "mean":
        return
    solver = recipe.align.solver
    if solver.gives != "permutation":
        yield (
            f"average {merge.average} needs couplings that are permutations, and solver {solver.name} gives none: "
            "choose emd"
        )
    if merge.partly:
        yield f"average {merge.average} is for channels that are all merged: choose mean, or keep none side by side"
    if images < 2:
        yield f"average {merge.average} needs calibration images, not {images}: give at least 2, better 500"


def _of_a_family(recipe: Recipe) -> Iterator[str]:
    if recipe.renorm.parents:
        yield f"goal best renews its candidates' statistics itself: leave out renorm {recipe.renorm.name}"
    if recipe.refit.name not in ("auto", "none", "ridge"):
        yield f"goal best refits its candidates by ridge: leave out refit {recipe.refit.name}"
    if recipe.align.solver.gives != "permutation":
        yield f"goal best needs couplings that are permutations: leave out solver {recipe.align.solver.name}"
    if recipe.merge.partly:
        yield "goal best is of the parents' width: leave out keep_worst, keep_first and keep_last"


def _of_the_solver(recipe: Recipe) -> Iterator[str]:
    solver, renorm = recipe.align.solver, recipe.renorm
    if solver.gives != "map":
        return
    if recipe.refits:
        yield (
            f"refit {recipe.refit.name} needs couplings that are permutations, and solver {solver.name} mixes channels:"
            " choose solver emd, or refit none"
        )
    if recipe.merge.partly:
        yield (
            f"channels are kept side by side by pairs, and solver {solver.name} finds none: choose solver emd, or "
            "leave out keep_worst, keep_first and keep_last"
        )
    if solver.folds and renorm.parents:
        yield (
            f"renorm {renorm.name} compares a child with its parents channel by channel, and solver {solver.name} "
            "mixes them: choose reset or none"
        )
    if solver.jointly and recipe.merge.weights_by != "network":
        yield (
            f"solver {solver.name} merges by one share per parent: leave out merge.weights_by {recipe.merge.weights_by}"
        )
    if recipe.align.choose == "groups":
        yield f"solver {solver.name} finds one solution: leave out align.choose groups"
