"""Train a linear classifier without labels by regularised information maximisation."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn

TEMPERATURE = 2.0
KEPT = 0.5
PENALTY = 1e-2
ITERATIONS = 50
PER_CLASS = 20


class _LBFGS(torch.optim.LBFGS):
    """The optimiser without a decorator against compiling, which imports the compiler: that takes seconds."""

    add_param_group = inspect.unwrap(torch.optim.LBFGS.add_param_group)


class Classifier(NamedTuple):
    """A linear classifier, and what it tells of the class.

    Attributes
    ----------
    weight, bias
        (classes, width) and (classes,).
    information
        Mutual information (nats) of image and predicted class on the images that it was found from, a scalar.
    mean, deviation
        (width,) of their features.
    """

    weight: Tensor
    bias: Tensor
    information: Tensor
    mean: Tensor
    deviation: Tensor


def maximise(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor | None = None,
    label_weight: float = 1.0,
    *,
    overwrite: bool = False,
) -> Classifier:
    r"""Maximise the information of a linear classifier about the class, keeping how often it predicts each.

    It minimises

    .. math:: \overline{H(p)} + \mathrm{KL}(\bar p, \pi) + \kappa\, \overline{H(p^0, p)} + \tfrac\mu2 \|\Delta W\|^2

    over images, where p are its class probabilities and p0 those at the start, at the temperature of `TEMPERATURE`. The
    first two terms are the mutual information of image and class with a prior for the classes (Krause et al. 2010,
    section 3; Liang et al. 2020, section 3.2); :math:`\pi` is the mean of its probabilities at the start, and not
    uniform, since the images need not be balanced. :math:`\Delta W` is by standardised features. Where
    there are labels, their mean cross-entropy is added, times `label_weight`.

    Parameters
    ----------
    features
        Inputs (N, width).
    weight, bias
        Of the classifier at the start, (classes, width) and (classes,).
    labels
        Of the first images (int64), if there are any.
    label_weight
        What their mean cross-entropy counts for.
    overwrite
        Standardise float64 features in place: all that is held of every image is then held once.

    Returns
    -------
    Classifier
        The new one, whose scores are at temperature 1.
    """
    x = features.double()
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x = x.sub_(mean) if overwrite or x is not features else x - mean
    x /= deviation
    start = (weight.double() * deviation / TEMPERATURE, (bias.double() + weight.double() @ mean) / TEMPERATURE)
    scores = x @ start[0].T + start[1]
    prior = (TEMPERATURE * scores).log_softmax(1).exp().mean(0).clamp_min(1e-12).log()
    stay = KEPT * scores.softmax(1)
    moved = torch.zeros_like(start[0], requires_grad=True)
    shift = torch.zeros_like(start[1], requires_grad=True)
    optimiser = _LBFGS([moved, shift], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        moved.grad = shift.grad = None
        logarithms = (x @ (start[0] + moved).T + start[1] + shift).log_softmax(1)
        probabilities = logarithms.exp()
        marginal = probabilities.mean(0).clamp_min(1e-12)
        loss = -((probabilities + stay) * logarithms).sum(1).mean() + (marginal * (marginal.log() - prior)).sum()
        loss = loss + 0.5 * PENALTY * moved.square().sum()
        if labels is not None:
            loss = loss + label_weight * nn.functional.nll_loss(logarithms[: len(labels)], labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    found, shifted = start[0] + moved.detach(), start[1] + shift.detach()
    solution = found / deviation
    return Classifier(
        solution.to(weight),
        (shifted - solution @ mean).to(bias),
        mutual_information(x @ found.T + shifted),
        mean,
        deviation,
    )


def two_sets(features: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Copy the features of two sets of images (N, width).

    They are halves of the images, or `PER_CLASS` images for each class where there are more: of many images even the
    wrong classes of parents that know little are found again. They are drawn at random, the same ones at each call.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0)).to(features.device)
    first, second = (features[drawn[: PER_CLASS * classes]] for drawn in (order[::2], order[1::2]))
    return first, second


def agreement(
    sets: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor], standardised: Tensor, found: Classifier
) -> float:
    """Find the classifier on two sets of images, and return the share of all images that both name alike.

    What differs between them was not told by the images.

    Parameters
    ----------
    sets
        Features of `two_sets`, which are overwritten.
    start
        Weight and bias of the classifier at the start, as `maximise` takes them.
    standardised
        Features of all images, as `maximise` leaves them where it overwrites them.
    found
        What it found then, with their mean and deviation.

    Source: stability of a clustering, Lange et al. 2004, *Stability-based validation of clustering solutions*.
    """
    named = []
    for drawn in sets:
        weight, bias, *_ = maximise(drawn, *start, overwrite=True)
        weight, bias = weight.to(standardised), bias.to(standardised)
        named.append((standardised @ (weight * found.deviation).T + bias + weight @ found.mean).argmax(1))
    return float((named[0] == named[1]).double().mean())


def mutual_information(scores: Tensor) -> Tensor:
    r"""Compute :math:`H(\bar p) - \overline{H(p)}` in nats, of class scores (N, C) with probabilities p."""
    probabilities = scores.softmax(1)
    marginal = probabilities.mean(0)
    information: Tensor = torch.special.entr(marginal).sum() - torch.special.entr(probabilities).sum(1).mean()
    return information
