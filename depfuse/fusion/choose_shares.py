"""Choose the parents' shares for each part of a network by the child's loss on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.child_builder import ChildBuilder
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.groups.partition import parts_by_group, parts_by_stage
from depfuse.merge import Shares

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the first of two parents, relative to their sum
MAX_ROUNDS = 5  # over all pairs of parents


@dataclass(frozen=True)
class ChosenShares:
    """Shares, and the child's loss (nats) on held-out images before and after they were chosen.

    The losses are None where nothing was chosen.
    """

    shares: Shares
    before: float | None = None
    after: float | None = None


def choose_shares(start: Shares, loss: Callable[[Shares], float]) -> ChosenShares:
    """Minimise a loss over the shares of every part by coordinate descent from `start`.

    For one part and two parents at a time, the sum of their shares is divided anew, in quarters, where that lowers the
    loss most, until no part and no pair of parents changes. The loss is never above that of `start`.

    Parameters
    ----------
    start
        Shares whose parts may change.
    loss
        What is minimised.
    """
    best = start
    first = least = loss(start)
    pairs = [(part, pair) for part in start.parts for pair in combinations(range(len(start.network)), 2)]
    unchanged = 0
    for turn in range(MAX_ROUNDS * len(pairs)):
        part, pair = pairs[turn % len(pairs)]
        before = least
        for other in _divided(best.parts[part], pair):
            candidate = best.having(part, other)
            candidate_loss = loss(candidate)
            if candidate_loss < least:
                best, least = candidate, candidate_loss
        unchanged = unchanged + 1 if least == before else 1
        if unchanged == len(pairs):
            break
    return ChosenShares(best, first, least)


def _divided(shares: Sequence[float], pair: tuple[int, int]) -> Iterator[tuple[float, ...]]:
    """Yield the shares with the sum of two parents' divided in every other way of the grid."""
    mass = shares[pair[0]] + shares[pair[1]]
    for share in GRID if mass > 0 else ():
        divided = list(shares)
        divided[pair[0]], divided[pair[1]] = mass * share, mass * (1.0 - share)
        if divided != list(shares):
            yield tuple(divided)


def shares_by_part(builder: ChildBuilder, parts: str, calibration: Loader) -> ChosenShares:
    """Choose the shares of every stage or group of channels, starting from the recipe's shares.

    The loss is the cross-entropy (nats) of the child under its parents' ensemble at the recipe's shares, on calibration
    images of which it has no statistics; or under the labels of the recipe's labelled images (see `EnsembleJudge`).

    Parameters
    ----------
    builder
        What the children are averaged from, with an example input.
    parts
        `stage` or `group`.
    calibration
        Images.

    Raises
    ------
    RecipeError
        There are fewer than four images.
    """
    if calibration.count < 4:
        raise RecipeError(
            f"merge.weights_by {parts} needs at least 4 calibration images, not {calibration.count}: give 1000"
        )
    assert builder.example is not None
    recipe, groups, first = builder.recipe, builder.groups, builder.networks[0]
    network, labelled = recipe.shares(len(builder.networks)), recipe.teach.labelled
    part_of = parts_by_stage(first, builder.example) if parts == "stage" else parts_by_group(first, groups)
    images = CalibrationSplit.for_shares(calibration, labelled)
    judge = EnsembleJudge(builder.ensemble, groups, recipe.renorm_alone.name, images, labelled=labelled > 0)
    start = Shares.of_parts(network, part_of)
    return choose_shares(start, lambda shares: judge.of_child(builder.average(shares), network))
