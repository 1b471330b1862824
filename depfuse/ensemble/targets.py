"""What the parents' ensemble teaches: what their outputs are together, by `outputs` and the labels that they know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depfuse.ensemble.label_sets import LabelSets
from depfuse.tasks.outputs import distance_of

TEMPERATURE = 4.0


def mean_logits(outputs: Sequence[Tensor], shares: Sequence[float], labels: LabelSets | None = None) -> Tensor:
    """The share-weighted mean of the parents' logits (N, C); side by side where they know different labels."""
    if labels is not None and not labels.same:
        return labels.join(outputs, shares, 1)
    return torch.stack([share * own for share, own in zip(shares, outputs, strict=True)]).sum(0)


def wanted_of(
    outputs: Sequence[Tensor], shares: Sequence[float], labels: LabelSets | None = None, *, joint: bool = False
) -> Tensor:
    """What the parents say together (N, ...), to compare others with (`Distance.losses`).

    Of class scores the share-weighted mean of the parents' class probabilities; those of their logits side by side
    where they know different labels: a label that none knows has none. Those of the mean of their logits where they
    have one head together (`joint`). Of numbers their share-weighted mean.
    """
    if joint:
        logits = mean_logits(outputs, shares, labels)
        return distance_of(logits).predictions(logits)
    if labels is None or labels.same:
        return distance_of(outputs[0]).mean(outputs, shares)
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
    outvote the others. Where the parents know different labels, their logits side by side. Where the outputs are no
    class scores, their mean.

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
    return distance_of(outputs[0]).ensemble_target(outputs, shares, temperature)


def divergence(logits: Tensor, target: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """How far outputs are from the ensemble's, summed over images (see `outputs`)."""
    return distance_of(logits).divergence(logits, target, temperature)


def slope(logits: Tensor, target: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The derivative (N, ...) of the divergence by the outputs."""
    return distance_of(logits).slope(logits, target, temperature)


def curved(change: Tensor, logits: Tensor) -> Tensor:
    """The product (N, ...) of the divergence's curvature at some outputs with a change of them."""
    return distance_of(logits).curvature_product(change, logits, TEMPERATURE)


def drawn(logits: Tensor, generator: torch.Generator, temperature: float = TEMPERATURE) -> Tensor:
    """Random (N, ...) with the divergence's curvature as covariance."""
    return distance_of(logits).sample(logits, generator, temperature)
