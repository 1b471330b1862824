"""What the parents' ensemble teaches: softened class scores, and how far a child's are from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depfuse.label_sets import LabelSets

TEMPERATURE = 4.0


def mean_logits(outputs: Sequence[Tensor], shares: Sequence[float], labels: LabelSets | None = None) -> Tensor:
    """The share-weighted mean of the parents' logits (N, C); side by side where they know different labels."""
    if labels is not None and not labels.same:
        return labels.join(outputs, shares, 1)
    return torch.stack([share * own for share, own in zip(shares, outputs, strict=True)]).sum(0)


def mean_probabilities(
    outputs: Sequence[Tensor], shares: Sequence[float], labels: LabelSets | None = None, *, joint: bool = False
) -> Tensor:
    """The share-weighted mean of the parents' class probabilities (N, C).

    Those of their logits side by side where they know different labels: a label that none knows has none. Those of the
    mean of their logits where they have one head together (`joint`).
    """
    if joint:
        return mean_logits(outputs, shares, labels).softmax(1)
    if labels is None or labels.same:
        return torch.stack([share * own.softmax(1) for share, own in zip(shares, outputs, strict=True)]).sum(0)
    known = torch.stack(labels.of_outputs(outputs)).amax(0) > -torch.inf
    return labels.join(outputs, shares, 1).masked_fill(~known, -torch.inf).softmax(1)


def ensemble_logits(
    outputs: Sequence[Tensor],
    shares: Sequence[float],
    labels: LabelSets | None = None,
    temperature: float = TEMPERATURE,
    *,
    joint: bool = False,
) -> Tensor:
    r"""Logits t (N, C) with :math:`\mathrm{softmax}(t / \tau) = \sum_p w_p\, \mathrm{softmax}(z_p / \tau)`.

    The mean of the parents' probabilities, softened by the temperature :math:`\tau` (Hinton et al. 2015, section 2): a
    parent that does not know an image has little say, while the mean of the logits lets one that is sure and wrong
    outvote the others. Where the parents know different labels, their logits side by side.

    Parameters
    ----------
    outputs
        Each parent's logits (N, C).
    shares
        One weight per parent, summing to one.
    labels
        Which labels they stand for, where they differ.
    temperature
        How far probabilities are softened; at 1 they are the ensemble's own.
    joint
        The parents have one head together: the mean of their logits is its output, and none says anything alone.
    """
    if joint or (labels is not None and not labels.same):
        return mean_logits(outputs, shares, labels)
    weighted = [(own / temperature).log_softmax(1) + _log(share) for own, share in zip(outputs, shares, strict=True)]
    return temperature * torch.logsumexp(torch.stack(weighted), 0)


def divergence(logits: Tensor, target: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    r"""Sum over images of :math:`\tau^2\, \mathrm{KL}(\mathrm{softmax}(t / \tau), \mathrm{softmax}(z / \tau))`.

    At high temperatures half the squared distance of the logits, each without its mean, over the number of classes.
    """
    wanted, given = (target / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
    return temperature**2 * (wanted.exp() * (wanted - given)).sum()


def slope(logits: Tensor, target: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The derivative (N, C) of the divergence by the logits."""
    return temperature * ((logits / temperature).softmax(-1) - (target / temperature).softmax(-1))


def curved(change: Tensor, logits: Tensor) -> Tensor:
    """The product (N, C) of the divergence's second derivative at some logits with a change of them."""
    p = (logits / TEMPERATURE).softmax(-1)
    return p * (change - (p * change).sum(-1, keepdim=True))


def drawn(logits: Tensor, generator: torch.Generator, temperature: float = TEMPERATURE) -> Tensor:
    """Random (N, C) with the second derivative as covariance: a class drawn, less the classes' probabilities."""
    p = (logits / temperature).softmax(-1)
    classes = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
    return torch.zeros_like(p).scatter_(-1, classes, 1.0) - p


def _log(share: float) -> float:
    return float(torch.tensor(share).log())
