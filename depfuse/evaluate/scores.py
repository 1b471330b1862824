"""Scores of networks and how they differ. Plain numbers, which need no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from depfuse.errors import DataError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

CERTAIN = 2.0  # standard errors; by chance a difference is larger once in 22 times


@dataclass(frozen=True)
class Scores:
    """What one pass over labelled images tells about one network.

    Attributes
    ----------
    accuracy : float
        Fraction of the images whose largest output is the label's.
    loss : float
        Mean cross-entropy in nats, the outputs taken as logits.
    calibration_error : float
        Expected calibration error, a fraction: over 15 bins of equal width, the mean distance between
        confidence and accuracy, weighted by the bins' counts (Guo et al. 2017).
    count : int
        Number of images.
    correct : Tensor, optional
        (count,) bool, on the CPU: which images, in the order of the pass. Two networks scored on the same images can
        be told apart much better with it, see `difference`.
    """

    accuracy: float
    loss: float
    calibration_error: float
    count: int
    correct: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Agreement:
    """What one pass over images without labels tells about one network beside the ensemble of others.

    Attributes
    ----------
    ensemble : float
        Fraction of the images for which it predicts the ensemble's class.
    members : tuple of float
        For each member of the ensemble, the fraction of the images for which it predicts that one's class.
    confidence : float
        Mean probability of the class that it predicts.
    disagreement : float
        Mean cross-entropy, in nats, of its probabilities under the ensemble's.
    count : int
        Number of images.
    """

    ensemble: float
    members: tuple[float, ...]
    confidence: float
    disagreement: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Accuracy of one network minus that of another, a fraction, and its standard error over the images."""

    value: float
    error: float

    @property
    def certain(self) -> bool:
        """Whether it is more than `CERTAIN` standard errors."""
        return abs(self.value) > CERTAIN * self.error


def difference(first: Scores, second: Scores) -> Difference:
    """Compare the accuracies of two networks that were scored on the same images.

    With b images that only the first gets right and c that only the second does, the difference is (b - c) / n, and
    its standard error that of matched pairs, half an image added to each of the four outcomes, so that it is never
    none: sqrt((b + c + 1) - (b - c)^2 / (n + 2)) / (n + 2) (Agresti & Min 2005, Statistics in Medicine 24). Where it
    is not known which images are right, the images of the two count as independent, which makes the error larger.

    Raises
    ------
    DataError
        They were scored on different numbers of images.
    """
    if first.count != second.count:
        raise DataError(f"scores on {first.count} and {second.count} images cannot be compared")
    value, count = first.accuracy - second.accuracy, first.count + 2
    if first.correct is None or second.correct is None:
        shares = [(scores.accuracy * scores.count + 1) / count for scores in (first, second)]
        return Difference(value, math.sqrt(sum(share * (1 - share) for share in shares) / count))
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    spread = only_first + only_second + 1 - (only_first - only_second) ** 2 / count
    return Difference(value, math.sqrt(spread) / count)


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
