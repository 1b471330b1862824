"""Class scores: one row for each image, or a map of them with a row at each place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.tasks.label_kinds import IGNORED, check_range, fitted_classes, fitted_places
from depfuse.tasks.tallies.classes import ClassesTally
from depfuse.tasks.tallies.dense import DenseTally
from depfuse.tasks.tallies.tally import Tally
from depfuse.tasks.task import check_shape, log_share, positions, softening


class Classes:
    r"""Kullback-Leibler divergence of class scores z (N, C, ...) from targets t, the mean over the places of a map.

    It is :math:`\tau^2\, \mathrm{KL}(\mathrm{softmax}(t / \tau), \mathrm{softmax}(z / \tau))`.
    At high temperatures :math:`\tau` it tends to half the squared distance of the centred scores, divided by C. Maps
    are not softened, see `softening`.
    """

    name = "classes"
    predicts = True
    scalable = True

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Classes:
        """Build the task; outputs are rows (N, C) of at least two scores."""
        check_shape(
            cls.name, outputs, outputs[0].dim() == 2 and outputs[0].shape[1] > 1, "(N, C) of two or more classes"
        )
        return cls()

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Compute the scores whose probabilities at this temperature are the mean of the parents'."""
        temperature = softening(outputs[0], temperature)
        weighted = [
            (scores / temperature).log_softmax(1) + log_share(share)
            for scores, share in zip(outputs, shares, strict=True)
        ]
        return temperature * torch.logsumexp(torch.stack(weighted), 0)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the divergence, see the class."""
        temperature = softening(outputs, temperature)
        target, outputs = (target / temperature).log_softmax(1), (outputs / temperature).log_softmax(1)
        return temperature**2 * (target.exp() * (target - outputs)).sum() / positions(outputs)

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Subtract the probabilities at this temperature."""
        temperature = softening(outputs, temperature)
        difference = (outputs / temperature).softmax(1) - (target / temperature).softmax(1)
        return temperature * difference / positions(outputs)

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Multiply by H = diag(p) - p p^T at each place."""
        p = (outputs / softening(outputs, temperature)).softmax(1)
        return p * (change - (p * change).sum(1, keepdim=True)) / positions(outputs)

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        r"""Multiply by B, whose row c is :math:`\sqrt{p_c} (e_c - p)`, at each place."""
        p = outputs.flatten(1).softmax(0) if outputs.dim() > 1 else outputs.softmax(0)
        vectors = signs.reshape(-1, *p.shape) * p.sqrt()
        vectors = vectors - vectors.sum(1, keepdim=True) * p
        return vectors.reshape(signs.shape) / math.sqrt(positions(outputs[None]))

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Sample one-hot classes, less the classes' probabilities."""
        p = (outputs / softening(outputs, temperature)).softmax(1)
        rows = p.movedim(1, -1)
        classes = torch.multinomial(rows.reshape(-1, p.shape[1]).cpu(), 1, generator=generator).to(p.device)
        chosen = torch.zeros_like(rows).scatter_(-1, classes.reshape(*rows.shape[:-1], 1), 1.0).movedim(-1, 1)
        return (chosen - p) / math.sqrt(positions(outputs))

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average the parents' probabilities."""
        return torch.stack([share * scores.softmax(1) for share, scores in zip(shares, outputs, strict=True)]).sum(0)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Compute probabilities."""
        return outputs.softmax(1)

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute cross-entropies (N,), nats, under probabilities."""
        losses = -(target * outputs.softmax(1).clamp_min(1e-30).log()).sum(1)
        return losses if losses.dim() == 1 else losses.flatten(1).mean(1)

    def centred(self, directions: Tensor) -> Tensor:
        """Subtract the mean over the classes, which changes no probability."""
        return directions - directions.mean(1, keepdim=True)

    def agreements(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Count the images with the same class of highest score; of a map, its share of such places."""
        alike = outputs.argmax(1) == target.argmax(1)
        return alike.sum() if alike.dim() == 1 else alike.flatten(1).float().mean(1).sum()

    def unit(self, target: Tensor) -> float:
        """Return one nat."""
        return 1.0

    def fitted_labels(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Give labels the shape (N,) of whole numbers, one of the outputs each."""
        labels = fitted_classes(labels, outputs)
        check_range(labels, outputs.shape[1])
        return labels

    def label_loss(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Compute the cross-entropy, nats, under classes (N,) or soft labels (N, C)."""
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing)

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Count the images whose highest score is the label's, or that of the highest soft label."""
        return (outputs.argmax(1) == (labels.argmax(1) if labels.is_floating_point() else labels)).sum()

    def tally(self) -> Tally:
        """Begin to score outputs under labels (N,)."""
        return ClassesTally()


class Dense(Classes):
    """Maps of class scores (N, C, ...), of any spatial dimensions."""

    name = "dense"

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Classes:
        """Build the task; outputs are maps (N, C, ...) of at least two scores."""
        check_shape(
            cls.name, outputs, outputs[0].dim() > 2 and outputs[0].shape[1] > 1, "(N, C, ...) of two or more classes"
        )
        return cls()

    def fitted_labels(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Give labels the shape (N, ...) of the places, whole numbers; those without a class are `IGNORED`."""
        return fitted_places(labels, outputs)

    def label_loss(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Compute the cross-entropy, nats, the mean over the places that have a class."""
        count = (labels != IGNORED).sum().clamp_min(1)
        loss = F.cross_entropy(outputs, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
        return loss / count

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Sum over images the share of the places with a class that is predicted."""
        counted = (labels != IGNORED).flatten(1)
        right = (outputs.argmax(1) == labels).flatten(1) & counted
        return (right.sum(1) / counted.sum(1).clamp_min(1)).sum()

    def tally(self) -> Tally:
        """Begin to score maps under labels (N, ...)."""
        return DenseTally()
