"""How good a network is: accuracy, loss, calibration error; alone, in an ensemble, along a path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError, RecipeError
from depfuse.groups.tracing.depgraph import evaluation_copy
from depfuse.networks.isolation import undisturbed
from depfuse.networks.layout import choose_layout

BINS = 15
CERTAIN = 2.0  # standard errors; by chance a difference is larger once in 22 times

Batches = Iterable[tuple[Tensor, Tensor]]
"""Anything that yields (inputs (N, ...), labels (N,)) on the networks' device."""


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
    scores: Scores


def most_frequent(labels: Tensor) -> float:
    """Share of the most frequent label among labels (N,) from 0 on: the accuracy of a network that knows nothing."""
    return float(torch.bincount(labels).max()) / len(labels)


def evaluate(model: nn.Module, batches: Batches) -> Scores:
    """Score one network; it runs in evaluation mode and is left in the mode it had.

    Raises
    ------
    DataError
        When there is no image, the images do not fit the network, or a label has no output.
    """
    return evaluate_together([model], batches)[0]


def evaluate_together(models: Sequence[nn.Module], batches: Batches) -> list[Scores]:
    """Score several networks in one pass over the data, in the order given; see `evaluate`."""
    return _score(models, batches, [])


def evaluate_with_ensemble(
    models: Sequence[nn.Module],
    batches: Batches,
    weights: Sequence[float] | None = None,
    sets: LabelSets | None = None,
) -> tuple[list[Scores], Scores]:
    """Score networks and their logit ensemble in one pass over the data.

    Parameters
    ----------
    models : sequence of Module
        The members; all have the same number of outputs, unless `sets` says what these stand for.
    batches : iterable of (inputs, labels)
        Labelled images on the networks' device.
    weights : sequence of float, optional
        One share per member, summing to one; equal shares when left out.
    sets : LabelSets, optional
        Which labels the members' outputs stand for, where they differ. A member gives those that it does not know no
        probability; the ensemble has the heads side by side.

    Returns
    -------
    list of Scores, Scores
        Each member's own, and those of sum_m weights[m] * logits_m.
    """
    shares = list(weights) if weights is not None else [1.0 / len(models)] * len(models)
    if len(shares) != len(models):
        raise RecipeError(f"{len(shares)} weights for an ensemble of {len(models)} networks: give one each")
    *members, ensemble = _score(models, batches, [shares], sets)
    return members, ensemble


def evaluate_ensemble(models: Sequence[nn.Module], batches: Batches, weights: Sequence[float] | None = None) -> Scores:
    """Score the (weighted) mean of the networks' logits; see `evaluate_with_ensemble`."""
    return evaluate_with_ensemble(models, batches, weights)[1]


def path_alphas(points: int) -> list[float]:
    """Equidistant shares of the second parent, from 0 to 1 with both ends."""
    if points < 2:
        raise RecipeError(f"a path of {points} point(s) has no two ends; ask for at least 2")
    return [index / (points - 1) for index in range(points)]


def evaluate_path(
    ends: tuple[Scores, Scores],
    network_at: Callable[[float], nn.Module],
    batches: Batches,
    alphas: Sequence[float],
    on_point: Callable[[float], None] | None = None,
) -> list[PathPoint]:
    """Score the networks between two parents.

    The two ends are the parents themselves, whose scores are passed in: nothing is merged there, and
    no statistics are replaced.

    Parameters
    ----------
    ends : (Scores, Scores)
        Of the first parent (alpha 0) and the second (alpha 1).
    network_at : callable
        Gives the network at a share of the second parent strictly between 0 and 1.
    batches : iterable of (inputs, labels)
        Labelled images; iterated once per inner point.
    alphas : sequence of float
        Increasing shares of the second parent, the first 0 and the last 1.
    on_point : callable, optional
        Called with alpha after each inner point.
    """
    if len(alphas) < 2 or alphas[0] != 0.0 or alphas[-1] != 1.0:
        raise RecipeError(f"a path runs from 0 to 1, not over {list(alphas)}")
    points = [PathPoint(0.0, ends[0])]
    for alpha in alphas[1:-1]:
        points.append(PathPoint(alpha, evaluate(network_at(alpha), batches)))
        if on_point is not None:
            on_point(alpha)
    return [*points, PathPoint(1.0, ends[1])]


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


class _Tally:
    """Sums over batches of what the scores are made of, kept on the device until the end."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Tensor | None = None
        self._extremes: Tensor | None = None
        self._outputs = 0
        self._correct: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch: logits (N, classes), labels (N,)."""
        self._outputs = logits.shape[1]
        log_probabilities = logits.float().log_softmax(dim=1)
        # A label without an output would read past the end; it is refused once the pass is over, because
        # looking at it here would make the host wait for the device in every batch.
        readable = labels.clamp(0, self._outputs - 1).unsqueeze(1)
        losses = -log_probabilities.gather(1, readable).squeeze(1).double()
        confidences = log_probabilities.max(dim=1).values.exp().double()
        right = logits.argmax(dim=1) == labels
        self._correct.append(right)
        correct = right.double()
        bins = ((confidences * BINS).ceil() - 1).clamp(0, BINS - 1).nan_to_num(0).long()
        sums = torch.zeros(2 * BINS + 2, dtype=torch.float64, device=logits.device)
        sums[:BINS].index_add_(0, bins, confidences)
        sums[BINS : 2 * BINS].index_add_(0, bins, correct)
        sums[-2] = losses.sum()
        sums[-1] = correct.sum()
        extremes = torch.stack([-labels.min(), labels.max()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._extremes = extremes if self._extremes is None else torch.maximum(self._extremes, extremes)
        self._count += len(labels)

    def scores(self) -> Scores:
        """Fetch the sums and divide."""
        if self._sums is None or self._extremes is None:
            raise DataError("there is no image to evaluate on")
        lowest, highest = -int(self._extremes[0]), int(self._extremes[1])
        if lowest < 0 or highest >= self._outputs:
            wrong = lowest if lowest < 0 else highest
            raise DataError(
                f"the data have the label {wrong}, but the network has {self._outputs} outputs"
                f" (labels 0 to {self._outputs - 1}): use the data set that the network was trained for"
            )
        sums = self._sums.cpu()
        gaps = (sums[:BINS] - sums[BINS : 2 * BINS]).abs().sum()
        return Scores(
            accuracy=float(sums[-1]) / self._count,
            loss=float(sums[-2]) / self._count,
            calibration_error=float(gaps) / self._count,
            count=self._count,
            correct=torch.cat(self._correct).cpu(),
        )


@undisturbed()
def _score(
    models: Sequence[nn.Module],
    batches: Batches,
    ensembles: Sequence[Sequence[float]],
    sets: LabelSets | None = None,
) -> list[Scores]:
    """Score every network, then every ensemble (one share per network), in one pass."""
    # What is not in evaluation mode is copied instead of being switched: other threads may use it meanwhile.
    models = [m if not any(part.training for part in m.modules()) else evaluation_copy(m, shared=True) for m in models]
    tallies = [_Tally() for _ in range(len(models) + len(ensembles))]
    layouts: list[torch.memory_format] = []
    with torch.inference_mode():
        for inputs, labels in batches:
            layouts = layouts or [_checked_layout(model, inputs[:1]) for model in models]
            outputs = [
                model(inputs.contiguous(memory_format=layout)) for model, layout in zip(models, layouts, strict=True)
            ]
            if sets is None:
                outputs += [_mean(outputs, shares) for shares in ensembles]
            else:
                outputs = sets.of_outputs(outputs) + [sets.join(outputs, shares, 1) for shares in ensembles]
            for tally, logits in zip(tallies, outputs, strict=True):
                tally.add(logits, labels)
    return [tally.scores() for tally in tallies]


def _mean(outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    widths = sorted({logits.shape[1] for logits in outputs})
    if len(widths) > 1:
        raise DataError(f"networks with {widths} outputs cannot be averaged into one ensemble")
    return torch.stack([share * logits for share, logits in zip(shares, outputs, strict=True)]).sum(0)


def _checked_layout(model: nn.Module, image: Tensor) -> torch.memory_format:
    """Choose the memory format of a network's inputs, and refuse one that gives no logits."""
    layout, output = choose_layout(model, image)
    if not isinstance(output, Tensor) or output.dim() != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(f"the network must return logits (images, classes), but returned {found}")
    return layout
