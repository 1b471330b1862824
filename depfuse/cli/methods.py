"""Several methods of matching, drawn in one plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from depfuse.errors import RecipeError
from depfuse.evaluate import PathPoint, barrier
from depfuse.recipe import Recipe
from depfuse.recipe.criteria import CRITERIA
from depfuse.report import MethodPath, PathRow

if TYPE_CHECKING:
    from depfuse.fusion.result import FusionResult

NAIVE = "naive"


def parse_methods(text: str, recipe: Recipe) -> dict[str, Recipe]:
    """Read `weights,activations:sinkhorn,naive`: the name of each method and its recipe.

    A method is a criterion, with a solver after a colon if it is not the recipe's; everything else is as in the recipe.
    `naive` may be named, since it is always drawn.

    Raises
    ------
    RecipeError
        A method is unknown, named twice, or none is left beside `naive`.
    """
    recipes: dict[str, Recipe] = {}
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"--methods names {name} twice: name each method once")
        if name == NAIVE:
            continue
        criterion, colon, solver = name.partition(":")
        if criterion not in CRITERIA or (colon and not solver):
            raise RecipeError(
                f"--methods {name!r} is not known: give {', '.join(CRITERIA)} or {NAIVE}, each with a solver"
                " after a colon if need be, like weights:frank-wolfe"
            )
        made = recipe.changed({"align.criterion": criterion, "align.solver": solver or recipe.align.solver.name})
        own = made.align.solver
        if made.refit.name == "auto" and own.gives != "permutation":
            because = f"solver {own.name} gives no permutations, which a refit needs"
            if needless := made.changed(refit="none").teaches_nobody(because):
                raise RecipeError(f"--methods {name}: {needless}")
        recipes[name] = made
    if not recipes:
        raise RecipeError(f"--methods names no method beside {NAIVE}: add weights or activations")
    return recipes


def method_path(name: str, result: FusionResult, points: Sequence[PathPoint]) -> MethodPath:
    """Take the path by one method into a report."""
    alphas = [point.alpha for point in points]
    rows = [PathRow.at_point(point) for point in points]
    return MethodPath(
        name=name,
        path=rows,
        barrier_loss=barrier(alphas, [math.nan if row.nats is None else row.nats for row in rows]),
        barrier_error=barrier(alphas, [1.0 - row.value for row in rows]),
        seconds=result.seconds["align"] + result.seconds["choose"],
        recipe=result.recipe.model_dump(mode="json"),
        not_converged=list(result.not_converged),
    )


def needs_images(methods: Mapping[str, Recipe]) -> bool:
    """Tell whether one of the methods reads calibration images."""
    return any(recipe.align.criterion.name != "weights" for recipe in methods.values())
