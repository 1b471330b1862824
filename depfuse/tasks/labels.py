"""Independent yes-or-no labels: one logit for each, of one label or of many, for an image or at each place of a map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.tasks.label_kinds import fitted_answers
from depfuse.tasks.tallies.labels import LabelsTally
from depfuse.tasks.task import check_shape, log_share, positions, softening


class Labels:
    r"""Kullback-Leibler divergence of logits z (N, L, ...) from targets t, summed over labels, the mean over places.

    Of one label it is :math:`\tau^2\, \mathrm{KL}(\sigma(t / \tau), \sigma(z / \tau))` of two Bernoulli distributions.
    Maps are not softened, see `softening`.
    """

    name = "multilabel"
    predicts = True
    scalable = True

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Labels:
        """Build the task; outputs are (N, L, ...)."""
        check_shape(cls.name, outputs, outputs[0].dim() > 1, "(N, L, ...)")
        return cls()

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Compute the logits whose probabilities at this temperature are the mean of the parents'."""
        temperature = softening(outputs[0], temperature)
        scaled = [logits / temperature for logits in outputs]
        logs = [log_share(share) for share in shares]
        yes = torch.logsumexp(torch.stack([F.logsigmoid(z) + log for z, log in zip(scaled, logs, strict=True)]), 0)
        no = torch.logsumexp(torch.stack([F.logsigmoid(-z) + log for z, log in zip(scaled, logs, strict=True)]), 0)
        return temperature * (yes - no)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the divergence, see the class."""
        temperature = softening(outputs, temperature)
        z, t = outputs / temperature, target / temperature
        yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(z))
        no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-z))
        return temperature**2 * (yes + no).sum() / positions(outputs)

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Subtract the probabilities at this temperature."""
        temperature = softening(outputs, temperature)
        difference = (outputs / temperature).sigmoid() - (target / temperature).sigmoid()
        return temperature * difference / positions(outputs)

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Multiply by H = p (1 - p)."""
        return _variance(outputs / softening(outputs, temperature)) * change / positions(outputs)

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """Multiply by B, the square root of p (1 - p)."""
        return signs * _variance(outputs).sqrt().reshape(-1) / math.sqrt(positions(outputs[None]))

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Sample labels, less their probabilities."""
        p = (outputs / softening(outputs, temperature)).sigmoid()
        drawn = torch.bernoulli(p.cpu(), generator=generator).to(p)
        return (drawn - p) / math.sqrt(positions(outputs))

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average the parents' probabilities."""
        return torch.stack([share * logits.sigmoid() for share, logits in zip(shares, outputs, strict=True)]).sum(0)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Compute probabilities."""
        return outputs.sigmoid()

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute cross-entropies (N,), nats, under probabilities, summed over labels."""
        losses = F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return losses.reshape(len(losses), -1).sum(1) / positions(outputs)

    def centred(self, directions: Tensor) -> Tensor:
        """Return the directions: each changes a probability."""
        return directions

    def agreements(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Sum the share of labels that are on the same side; the target is of probabilities."""
        alike = (outputs > 0) == (target > 0.5)
        return alike.reshape(len(alike), -1).float().mean(1).sum()

    def unit(self, target: Tensor) -> float:
        """Return one nat."""
        return 1.0

    def fitted_labels(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Give labels of 0 and 1 the shape of the outputs."""
        return fitted_answers(labels, outputs)

    def label_loss(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Compute the cross-entropy, nats, summed over labels; smoothing brings them towards one half."""
        return self.losses(outputs, labels + smoothing * (0.5 - labels)).mean()

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Sum the share of labels that are predicted."""
        return self.agreements(outputs, labels)

    def tally(self) -> LabelsTally:
        """Begin to score outputs under labels of 0 and 1."""
        return LabelsTally()


class Binary(Labels):
    """One logit: yes or no."""

    name = "binary"

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Labels:
        """Build the task; outputs are (N,) or (N, 1, ...)."""
        check_shape(cls.name, outputs, outputs[0].dim() == 1 or outputs[0].shape[1] == 1, "(N,) or (N, 1, ...)")
        return cls()


def _variance(logits: Tensor) -> Tensor:
    return logits.sigmoid() * (-logits).sigmoid()
