r"""Evidence of what outputs mean, from those of several parents for the same images and without labels.

Softmax does not see a shift common to all classes, so cross-entropy leaves it as the initial weights made it. Let
:math:`\bar z` be the mean of an image's C scores, r the correlation of two independently trained parents' scores and
:math:`\rho = C^2 \mathrm{Var}(\bar z) / \sum_c \mathrm{Var}(z_c)`, which is 1 of independent scores. Of class scores
only the learned part agrees, and the common shift has the initial part alone: :math:`\rho + r` is at most about 1.
Where each number means something by itself, as of labels, coordinates and pixels, the parents agree on
:math:`\bar z` as on the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LIKE_IMAGES = "they are like the images themselves, channel by channel"
FEWEST = 16  # rows that can tell anything
MOST_PLACES = 64  # of a map, drawn at random
AGREE = 0.8  # least correlation of the parents' common shifts where these are learned; 0.86 and more of 15 such pairs
SHIFT = 0.5  # least rho there; 0.68 and more
LEARNED = 1.45  # least sum of rho and r there; 1.6 and more, and of class scores up to 1.1
SAME = 1 - 1e-5  # correlation of parents that are one function, which says nothing
OPEN = 0.3  # the most rho, or the least lack of agreement, of class scores
MANY = 20  # numbers from which on a shift of all of them is small beside each, and their signs must agree with labels
FOLLOWS = 0.8  # least correlation of maps with the images themselves
ALIKE, APART, EMBEDDED = 0.7, 0.3, 16  # of embeddings: kernels alike, numbers apart, so many of them
NUMBERS = (0.1, 3.0)  # range of rho of embeddings, whose numbers are about independent
BIMODAL = 0.6  # least bimodality coefficient; 0.555 of a uniform distribution (Pfister et al. 2013)
SATURATED = 0.4  # least share of logits beyond 2 in size
VALLEY = 0.35  # most values near zero, relative to the smaller side of it; 0.33 of a uniform distribution
SEVERAL = 1.5  # positive numbers of an image from which on they may be labels
UNIT = 1e-4  # largest deviation of lengths, or sums, from one
KINDS = {
    "classes": "class scores",
    "dense": "maps of class scores",
    "multilabel": "logits of labels",
    "binary": "yes-or-no logits",
    "regression": "numbers",
    "features": "features",
}


@dataclass(frozen=True)
class Evidence:
    """What outputs seem to mean.

    Attributes
    ----------
    task
        Name of the task.
    because
        What says so, as a clause.
    clear
        Whether it is more than an assumption.
    doubtful
        Whether it may be otherwise all the same.
    """

    task: str
    because: str
    clear: bool = True
    doubtful: bool = False

    @property
    def sentence(self) -> str:
        """Say what the outputs are taken for, and why."""
        taken = "taken for" if self.clear else "assumed to be"
        otherwise = "; name the `task` if they are not" if self.doubtful or not self.clear else ""
        return f"the outputs are {taken} {KINDS[self.task]}: {self.because}{otherwise}"


def find_evidence(
    outputs: Sequence[Tensor],
    inputs: Tensor | None = None,
    *,
    same_heads: bool = False,
    labels: Tensor | None = None,
) -> Evidence:
    """Tell what outputs mean.

    Parameters
    ----------
    outputs
        Each parent's outputs (N, ...) for the same images.
    inputs
        The images (N, C, ...), where that is what they are.
    same_heads
        Whether the parents' last layers are much alike, as those of a common start that were trained little: their
        common shifts are then alike, too, and say nothing.
    labels
        What such outputs are scored by, of any images, where that is known: of one number they tell what it is.
    """
    first = outputs[0]
    single = first.dim() < 2 or first.shape[1] < 2
    assumed = "regression" if single else "classes" if first.dim() == 2 else "dense"
    if single and labels is not None and (said := _by_labels(outputs, labels)) is not None:
        return said
    if any(own.shape != first.shape for own in outputs):
        return Evidence(assumed, "the parents know different labels", clear=False)
    rows = [_rows(own) for own in outputs]
    if len(rows[0]) < FEWEST:
        return Evidence(assumed, "there are too few images to tell", clear=False)
    if not all(bool(own.isfinite().all()) for own in rows):
        return Evidence(assumed, "some are not finite, by which nothing can be told", clear=False)
    if single:
        return _of_one(rows, assumed)
    return _of_form(rows, assumed) or _of_agreement(rows, outputs, inputs, assumed, same_heads)


def are_probabilities(outputs: Sequence[Tensor]) -> bool:
    """Tell whether the outputs (N, ...) of enough images lie between 0 and 1, as what a sigmoid gives."""
    return len(outputs[0]) >= FEWEST and _between(outputs)


def _by_labels(outputs: Sequence[Tensor], labels: Tensor) -> Evidence | None:
    """Tell one logit from one number by the labels; None where these leave it open."""
    if bool(((labels == 0) | (labels == 1)).all()):
        return None if are_probabilities(outputs) else Evidence("binary", "the labels are 0 and 1")
    return Evidence("regression", "the labels are numbers") if labels.is_floating_point() else None


def are_softmax(outputs: Sequence[Tensor]) -> bool:
    """Tell whether the outputs (N, C, ...) of enough images are probabilities of classes, as what a softmax gives."""
    if len(outputs[0]) < FEWEST or outputs[0].dim() < 2 or outputs[0].shape[1] < 2:
        return False
    return all(bool((own >= 0).all()) and _ones(own.sum(1)) for own in outputs)


def _of_one(rows: Sequence[Tensor], assumed: str) -> Evidence:
    """Tell one logit from one number."""
    if _are_logits(rows):
        return Evidence("binary", "they are on both sides of zero and seldom near it, as one logit is")
    if _between(rows):
        return Evidence(assumed, "they lie between 0 and 1, as what a sigmoid gives")
    said = "they are spread as numbers are, and not on both sides of zero, as a logit is that was trained well"
    return Evidence(assumed, said, doubtful=True)


def _of_form(rows: Sequence[Tensor], assumed: str) -> Evidence | None:
    """Recognise outputs by a last operation that shows in their values."""
    if all(bool((own >= 0).all()) and _ones(own.sum(1)) for own in rows):
        return Evidence(assumed, "they are probabilities that sum to one")
    if all(bool((own <= 0).all()) and _ones(own.exp().sum(1)) for own in rows):
        return Evidence(assumed, "they are logarithms of probabilities that sum to one")
    if all(_ones(torch.linalg.vector_norm(own, dim=1)) for own in rows):
        return Evidence("features", "each is a direction: its length is one")
    return None


def _of_agreement(
    rows: Sequence[Tensor], outputs: Sequence[Tensor], inputs: Tensor | None, assumed: str, same_heads: bool
) -> Evidence:
    """Recognise outputs by what the parents agree on."""
    pairs = list(itertools.combinations(range(len(rows)), 2))
    means = [own.mean(1, keepdim=True) for own in rows]
    agree = _mean([_correlation(rows[one], rows[other]) for one, other in pairs])
    common = _mean([_correlation(means[one], means[other]) for one, other in pairs])
    rho = _mean([_shift(own, mean) for own, mean in zip(rows, means, strict=True)])
    if not pairs or agree > SAME:
        if rho >= SHIFT and _follow(outputs, inputs):
            return Evidence("regression", LIKE_IMAGES)
        return Evidence(assumed, "the parents are one function, from which nothing can be told", clear=False)
    count, said = rows[0].shape[1], f"the parents agree on the mean of an image's numbers (correlation {common:.2f})"
    learned = common >= AGREE and rho >= SHIFT and rho + agree >= LEARNED and not same_heads
    if (learned or (common >= SHIFT and rho >= 1.0)) and _follow(outputs, inputs):
        return Evidence("regression", LIKE_IMAGES)
    if learned and _are_logits(rows) and (count <= MANY or _mostly_no(rows)):
        return Evidence("multilabel", f"{said}, and each is on both sides of zero and seldom near it, as a logit is")
    if learned and _between(rows):
        return Evidence("regression", f"{said}, and all lie between 0 and 1, as what a sigmoid gives")
    if learned and count <= MANY:
        return Evidence("regression", f"{said}, which class scores leave open")
    apart = abs(agree) <= APART and NUMBERS[0] <= rho <= NUMBERS[1] and count >= EMBEDDED
    if apart and _mean([_kernels(rows[one], rows[other]) for one, other in pairs]) >= ALIKE:
        return Evidence("features", "the parents agree on which images are alike, and on no single number")
    if _are_logits(rows) and count > 2 and _mean([float((own > 0).sum(1).double().mean()) for own in rows]) >= SEVERAL:
        return Evidence(assumed, "they may as well be logits of labels, of which every image has several", clear=False)
    if agree >= SHIFT and (rho <= OPEN or common <= agree - OPEN):
        return Evidence(assumed, f"the parents agree on scores (correlation {agree:.2f}) but for a common shift")
    if rho <= OPEN:
        return Evidence(assumed, "a shift common to all scores varies little, as cross-entropy leaves it")
    return Evidence(assumed, "the outputs do not tell", clear=False)


def _rows(outputs: Tensor) -> Tensor:
    """Bring outputs (N, ...) to rows (n, C) in float64: one for each image, or some places of a map."""
    if outputs.dim() < 2:
        return outputs.detach().double().reshape(-1, 1)
    flat = outputs.detach().flatten(2) if outputs.dim() > 2 else outputs.detach()[..., None]
    if flat.shape[2] > MOST_PLACES:
        generator = torch.Generator().manual_seed(0)
        flat = flat[..., torch.randperm(flat.shape[2], generator=generator)[:MOST_PLACES].to(flat.device)]
    return flat.double().movedim(1, 2).reshape(-1, outputs.shape[1])


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / max(1, len(numbers))


def _ones(numbers: Tensor) -> bool:
    return bool(((numbers - 1).abs() <= UNIT).all())


def _between(rows: Sequence[Tensor]) -> bool:
    return all(float(own.min()) >= 0 and float(own.max()) <= 1 for own in rows)


def _correlation(first: Tensor, second: Tensor) -> float:
    """Average the columns' correlations of two tensors (n, C), weighted by their spreads."""
    first, second = first - first.mean(0), second - second.mean(0)
    spread = (first.square().mean(0) * second.square().mean(0)).sqrt().sum()
    return float((first * second).mean(0).sum() / spread.clamp_min(1e-300))


def _shift(rows: Tensor, mean: Tensor) -> float:
    """Compute rho, see the module."""
    total = rows.var(0, correction=0).sum().clamp_min(1e-300)
    return float(rows.shape[1] ** 2 * mean.var(correction=0) / total)


def _kernels(first: Tensor, second: Tensor) -> float:
    """Compute the linear CKA of two representations (n, C) (Kornblith et al. 2019, equation 5)."""
    first, second = first - first.mean(0), second - second.mean(0)
    within = torch.linalg.matrix_norm(first.T @ first) * torch.linalg.matrix_norm(second.T @ second)
    return float((first.T @ second).square().sum() / within.clamp_min(1e-300))


def _are_logits(rows: Sequence[Tensor]) -> bool:
    """Tell whether numbers lie on both sides of zero, far from it, and seldom near."""
    values = torch.cat(list(rows))
    centred = (values - values.mean(0)) / values.std(0, correction=0).clamp_min(1e-300)
    skewness, kurtosis = centred.pow(3).mean(0), centred.pow(4).mean(0).clamp_min(1e-300)
    bimodality = float(((skewness.square() + 1) / kurtosis).mean())
    near = values.square().mean(0).sqrt() / 4
    around = (values.abs() < near).double().mean(0).sum()
    sides = torch.minimum((values > near).double().mean(0), (values < -near).double().mean(0)).sum()
    saturated = float((values.abs() > 2).double().mean())
    return bimodality >= BIMODAL and saturated >= SATURATED and float(around) <= VALLEY * float(sides)


def _mostly_no(rows: Sequence[Tensor]) -> bool:
    """Tell whether most of many labels are absent, by far: class scores are centred about zero instead."""
    return all(float(own.mean()) < -own.std() / 2 for own in rows)


def _follow(outputs: Sequence[Tensor], inputs: Tensor | None) -> bool:
    """Tell whether maps (N, C, ...) are like the images, channel by channel, at the lower resolution of the two."""
    if inputs is None or inputs.dim() != outputs[0].dim() or inputs.shape[:2] != outputs[0].shape[:2]:
        return False
    if not 3 <= inputs.dim() <= 5 or not inputs.is_floating_point():
        return False
    size = tuple(min(sizes) for sizes in zip(inputs.shape[2:], outputs[0].shape[2:], strict=True))
    pool: Callable[..., Tensor] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    images, *maps = (pool(part.double(), size).movedim(1, -1).flatten(0, -2) for part in (inputs, *outputs))
    return all(_correlation(own, images) >= FOLLOWS for own in maps)
