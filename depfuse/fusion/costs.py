"""What the stages of a fusion cost, foretold from a few images before they begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from depfuse.data.loader import Loader
from depfuse.networks.isolation import undisturbed
from depfuse.networks.stopwatch import seconds_of_pass
from depfuse.progress import work
from depfuse.recipe import Recipe
from depfuse.recipe.refits import Ridge

TIMED = 32  # images that a parent is timed on, after as many to warm up
# Passes of all parents over the calibration images that a refit takes as long as, from `experiments run standard`: its
# layers, and a step for all of them together. Networks and processors differ by half or twice that.
LAYERS = 2.5
STEP = 0.06
CLOSED_FORM = 3.0  # of regmean and least squares, which solve every layer once


def foretell_refit(
    parents: Sequence[nn.Module], images: Loader, recipe: Recipe, clock: Callable[[], float] | None = None
) -> None:
    """Say what the refit that begins will cost, where that is over a minute.

    Parameters
    ----------
    parents
        In evaluation mode.
    images
        For calibration; two times `TIMED` of them are run.
    recipe
        With its refit.
    clock
        Gives seconds; the system's where None.
    """
    refit = recipe.refit
    passes = LAYERS + STEP * refit.steps if isinstance(refit, Ridge) else CLOSED_FORM
    work().foretell(passes * seconds_of_passes(parents, images, clock))


def quicker_than(recipe: Recipe) -> str:
    """Say which preset or setting is quicker than the refit, or the candidates, of a recipe."""
    if recipe.goal.name == "best":
        return "`preset=standard` makes one child alone"
    without = "`preset=fast` leaves it out"
    several = isinstance(recipe.refit, Ridge) and recipe.refit.steps > 0
    return f"`refit.steps=0` takes about a fifth as long, and {without}" if several else without


@undisturbed()
def seconds_of_passes(parents: Sequence[nn.Module], images: Loader, clock: Callable[[], float] | None = None) -> float:
    """Estimate the seconds of a pass of all parents over all images, from one parent on a few of them."""
    few = images.first(TIMED)
    return seconds_of_pass(parents[0], few, clock) * len(parents) * images.count / few.count
