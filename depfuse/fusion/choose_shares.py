"""The parents' shares chosen for each part of a network, by what the child then does on images held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.fusion.agreement import Disagreement
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.material import Material
from depfuse.groups.partition import parts_by_group, parts_by_stage
from depfuse.merge import Shares
from depfuse.recipe import Recipe

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_ROUNDS = 5


@dataclass(frozen=True)
class Chosen:
    """Shares, and the child's loss (nats) on the images held out: with those that the choice began with, and with them.

    The losses are None where nothing was chosen.
    """

    shares: Shares
    before: float | None = None
    after: float | None = None


def choose_shares(start: Shares, loss: Callable[[Shares], float]) -> Chosen:
    """Shares of every part with which the loss is least, one part after the other from `start` on.

    What two parents have of a part together is divided between them anew, in quarters, where that lowers the loss most;
    until no part and no two parents change anything. So the loss is never above that of `start`.

    Parameters
    ----------
    start
        With the parts that may change.
    loss
        The less, the better.
    """
    best = start
    first = least = loss(start)
    pairs = [(part, pair) for part in start.parts for pair in combinations(range(len(start.network)), 2)]
    settled = 0
    for turn in range(MAX_ROUNDS * len(pairs)):
        part, pair = pairs[turn % len(pairs)]
        before = least
        for other in _divided(best.parts[part], pair):
            candidate = best.having(part, other)
            found = loss(candidate)
            if found < least:
                best, least = candidate, found
        settled = settled + 1 if least == before else 1
        if settled == len(pairs):
            break
    return Chosen(best, first, least)


def _divided(shares: Sequence[float], pair: tuple[int, int]) -> Iterator[tuple[float, ...]]:
    """What two parents have together divided in every other way of the grid."""
    mass = shares[pair[0]] + shares[pair[1]]
    for share in GRID if mass > 0 else ():
        own = list(shares)
        own[pair[0]], own[pair[1]] = mass * share, mass * (1.0 - share)
        if own != list(shares):
            yield tuple(own)


def shares_of_parts(material: Material, recipe: Recipe, example: Tensor, calibration: Loader) -> Chosen:
    """Choose the shares of every stage or group, as the recipe says, from the recipe's own shares on.

    The loss is the cross-entropy of the child under its parents' ensemble at the recipe's shares, on calibration images
    of which it has no statistics; or under the labels of the recipe's labelled images (see `Disagreement`).

    Parameters
    ----------
    material
        What the children are averaged from.
    recipe
        Says which parts have shares of their own.
    example
        An input to find stages with.
    calibration
        Images.

    Raises
    ------
    RecipeError
        There are fewer than four images.
    """
    by, labelled = recipe.merge.weights_by, recipe.teach.labelled
    if calibration.count < 4:
        raise RecipeError(f"weights_by {by} needs at least 4 calibration images, not {calibration.count}: give 1000")
    first, groups = material.networks[0], material.groups
    network = recipe.shares(len(material.networks))
    part_of = parts_by_stage(first, example) if by == "stage" else parts_by_group(first, groups)
    images = CalibrationSplit.for_shares(calibration, labelled)
    judge = Disagreement(material.ensemble, groups, recipe.renorm_alone.name, images, labelled=labelled > 0)
    start = Shares.of_parts(network, part_of)
    return choose_shares(start, lambda shares: judge.of_child(material.average(shares), network))
