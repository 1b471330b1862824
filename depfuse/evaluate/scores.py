"""How scores of networks differ. Plain numbers, which need no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from depfuse.errors import DataError, RecipeError
from depfuse.tasks.scores import AGREEMENT
from depfuse.tasks.scores import Measure as Measure
from depfuse.tasks.scores import Scores as Scores

if TYPE_CHECKING:
    from torch import Tensor

CERTAIN = 2.0  # standard errors; by chance a difference is larger once in 22 times


@dataclass(frozen=True)
class Agreement:
    """What one pass over images without labels tells about one network beside the ensemble of others.

    Attributes
    ----------
    ensemble : float
        How well it agrees with the ensemble, by `measure`: the fraction of the images for which it predicts the
        ensemble's class (of the places of a map, of the labels), or its score with the ensemble's outputs as targets.
    members : tuple of float
        The same for each member of the ensemble.
    confidence : float
        Mean probability of the class that it predicts; NaN where outputs are no class scores.
    disagreement : float
        Mean loss under the ensemble's predictions: of class scores the cross-entropy, in nats.
    count : int
        Number of images.
    measure : Measure
        What `ensemble` and `members` are.
    """

    ensemble: float
    members: tuple[float, ...]
    confidence: float
    disagreement: float
    count: int
    measure: Measure = AGREEMENT


@dataclass(frozen=True)
class Difference:
    """Score of one network minus that of another, and its standard error over the images."""

    value: float
    error: float

    @property
    def certain(self) -> bool:
        """Whether it is more than `CERTAIN` standard errors."""
        return abs(self.value) > CERTAIN * self.error


def difference(first: Scores, second: Scores) -> Difference:
    """Compare two networks that were scored on the same images by the same measure.

    Of images that are right or not, with b that only the first gets right and c that only the second does, the
    difference is (b - c) / n, and its standard error that of matched pairs, half an image added to each of the four
    outcomes, so that it is never none: sqrt((b + c + 1) - (b - c)^2 / (n + 2)) / (n + 2) (Agresti & Min 2005,
    Statistics in Medicine 24). By other measures it is that of the mean of the images' differences. Where it is not
    known which images are right, the images of the two count as independent, which makes the error larger.

    Raises
    ------
    DataError
        They were scored on different numbers of images, or by different measures.
    """
    if first.count != second.count or first.measure != second.measure:
        raise DataError(
            f"{first.measure.name} on {first.count} images cannot be compared with {second.measure.name} on"
            f" {second.count}: score both on the same images"
        )
    value, count = first.value - second.value, first.count + 2
    if first.of_images is None or second.of_images is None:
        return Difference(value, math.hypot(*(standard_error(scores) for scores in (first, second))))
    if first.of_images.is_floating_point():
        return Difference(value, _error_of_mean(first.of_images - second.of_images))
    only_first = int((first.of_images & ~second.of_images).sum())
    only_second = int((second.of_images & ~first.of_images).sum())
    spread = only_first + only_second + 1 - (only_first - only_second) ** 2 / count
    return Difference(value, math.sqrt(spread) / count)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Compute the 95 % interval of a share of images (Wilson 1927), which says something of 0 and of 1 as well."""
    z = 1.96
    middle, beyond = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, (middle - beyond) / (1 + z**2 / count)), min(1.0, (middle + beyond) / (1 + z**2 / count))


def standard_error(scores: Scores | Agreement) -> float:
    """Estimate the standard error of a score over the images; of a share with one image more of each outcome.

    Of an agreement that is a share of the images, likewise; NaN of one by another measure.
    """
    if isinstance(scores, Agreement):
        if scores.measure != AGREEMENT:
            return math.nan
        value = scores.ensemble
    else:
        if scores.of_images is not None and scores.of_images.is_floating_point():
            return _error_of_mean(scores.of_images)
        value = scores.value
    count = scores.count + 2
    share = (value * scores.count + 1) / count
    return math.sqrt(max(0.0, share * (1 - share)) / count)


def trivial(scores: Scores) -> bool:
    """Tell whether a network is no better than the best constant output, within the error of so few images."""
    return not scores.value > scores.trivial + CERTAIN * standard_error(scores)


def _error_of_mean(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf


@dataclass(frozen=True)
class PathPoint:
    """The scores of the merged network at one place on the path; `alpha` is the second parent's share."""

    alpha: float
    scores: Scores | Agreement


def path_alphas(points: int) -> list[float]:
    """Equidistant shares of the second parent, from 0 to 1 with both ends."""
    if points < 2:
        raise RecipeError(f"a path of {points} point(s) has no two ends; ask for at least 2")
    return [index / (points - 1) for index in range(points)]


def barrier(alphas: Sequence[float], losses: Sequence[float]) -> float:
    """Height of a curve above the straight line between its ends (Frankle et al. 2020).

    max over alpha of L(alpha) - ((1 - alpha) L(0) + alpha L(1)); never below 0, which the ends attain;
    not a number where one of the losses is none.

    Parameters
    ----------
    alphas : sequence of float
        Shares of the second parent, the first 0 and the last 1.
    losses : sequence of float
        L at each of them, in nats (or an error rate, for the barrier of the error).
    """
    if len(alphas) != len(losses):
        raise ValueError(f"{len(alphas)} alphas for {len(losses)} losses")
    if any(math.isnan(loss) for loss in losses):
        return math.nan
    first, last = losses[0], losses[-1]
    return max(loss - ((1.0 - alpha) * first + alpha * last) for alpha, loss in zip(alphas, losses, strict=True))
