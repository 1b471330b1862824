r"""Meaning of a network's outputs: the ensemble of several parents' outputs, the distance of two, and its curvature.

Outputs (N, C) with C of two or more are class scores, compared by cross-entropy. All others are plain numbers, compared
by squared error: one output (N, 1) or (N,), to which a softmax does not apply; maps, sequences and images; and all that
a dictionary or a tuple holds. Maps of class scores are among these: their squared distance is that of the logits.

A divergence D comes with its gradient and the Gauss-Newton factor B of its Hessian :math:`H = B^\top B`: another kind
of outputs is another class here, and second-order steps work with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from depfuse.errors import DataError, RecipeError
from depfuse.networks.running import float_tensors


class Distance(Protocol):
    """Distance between outputs of one kind; `outputs` and `target` are (N, ...)."""

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Combine the parents' outputs into the target of `divergence`."""

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the divergence of outputs from the target, summed over images."""

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the gradient (N, ...) of the divergence with respect to the outputs."""

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Multiply a change d of the outputs (N, ...) by the divergence's Gauss-Newton Hessian: H d."""

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """Compute B^T s at temperature 1, for vectors s (K, C) and the outputs (C,) of one image."""

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Sample random vectors (N, ...) whose covariance is the Hessian."""

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average the parents' predictions, as the target of `losses`."""

    def predictions(self, outputs: Tensor) -> Tensor:
        """Turn outputs into predictions, the target of `losses`."""

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the loss (N,) of each image's outputs under target predictions."""

    def centred(self, directions: Tensor) -> Tensor:
        """Project directions of the outputs (N, ...) onto those that change predictions."""

    def agreements(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Count the images for which both predict the same class; NaN where outputs are no classes."""

    def unit(self, target: Tensor) -> float:
        """Return the divergence per image that counts as large."""


class CrossEntropy:
    r"""Kullback-Leibler divergence of class scores z (N, C) from targets t.

    It is :math:`\tau^2\, \mathrm{KL}(\mathrm{softmax}(t / \tau), \mathrm{softmax}(z / \tau))`.
    At high temperatures :math:`\tau` it tends to half the squared distance of the centred scores, divided by C.
    """

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Compute the scores whose probabilities at this temperature are the mean of the parents'."""
        weighted = [
            (scores / temperature).log_softmax(1) + _log(share) for scores, share in zip(outputs, shares, strict=True)
        ]
        return temperature * torch.logsumexp(torch.stack(weighted), 0)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the divergence, see the class."""
        target, outputs = (target / temperature).log_softmax(-1), (outputs / temperature).log_softmax(-1)
        return temperature**2 * (target.exp() * (target - outputs)).sum()

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Subtract the probabilities at this temperature."""
        return temperature * ((outputs / temperature).softmax(-1) - (target / temperature).softmax(-1))

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Multiply by H = diag(p) - p p^T."""
        p = (outputs / temperature).softmax(-1)
        return p * (change - (p * change).sum(-1, keepdim=True))

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        r"""Multiply by B, whose row c is :math:`\sqrt{p_c} (e_c - p)`."""
        p = outputs.softmax(0)
        vectors = signs * p.sqrt()
        return vectors - vectors.sum(1, keepdim=True) * p

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Sample one-hot classes, less the classes' probabilities."""
        p = (outputs / temperature).softmax(-1)
        classes = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
        return torch.zeros_like(p).scatter_(-1, classes, 1.0) - p

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average the parents' probabilities."""
        return torch.stack([share * scores.softmax(1) for share, scores in zip(shares, outputs, strict=True)]).sum(0)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Compute probabilities."""
        return outputs.softmax(1)

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute cross-entropies (N,), nats, under probabilities."""
        return -(target * outputs.softmax(1).clamp_min(1e-30).log()).sum(1)

    def centred(self, directions: Tensor) -> Tensor:
        """Subtract the mean over the classes, which changes no probability."""
        return directions - directions.mean(-1, keepdim=True)

    def agreements(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Count the images with the same class of highest score."""
        return (outputs.argmax(1) == target.argmax(1)).sum()

    def unit(self, target: Tensor) -> float:
        """Return one nat."""
        return 1.0


class SquaredError:
    r"""Squared error of m numbers per image, :math:`\lVert z - t \rVert^2 / 2m`; it ignores temperatures."""

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Average the parents' outputs."""
        return self.mean(outputs, shares)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the divergence, see the class."""
        return 0.5 * self.losses(outputs, target).sum()

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Divide the difference by m."""
        return (outputs - target) / _numbers(outputs)

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Multiply by H = 1 / m."""
        return change / _numbers(outputs)

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """Return the vectors: B is the identity, as for outputs of unit variance."""
        return signs

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Sample random signs, scaled by 1 / sqrt(m)."""
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        drawn: Tensor = signs / _numbers(outputs) ** 0.5
        return drawn

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average the parents' outputs."""
        return torch.stack([share * output for share, output in zip(shares, outputs, strict=True)]).sum(0)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the outputs, which are the predictions."""
        return outputs

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute mean squared differences (N,)."""
        return (outputs - target).reshape(len(outputs), -1).square().mean(1)

    def centred(self, directions: Tensor) -> Tensor:
        """Return the directions: each changes the predictions."""
        return directions

    def agreements(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return NaN: numbers do not agree or differ as classes do."""
        return torch.full((), torch.nan, dtype=torch.float32, device=outputs.device)

    def unit(self, target: Tensor) -> float:
        """Compute half the variance of the target over images."""
        return 0.5 * float(target.reshape(len(target), -1).var(0, correction=0).mean())


CROSS_ENTROPY = CrossEntropy()
SQUARED_ERROR = SquaredError()


def as_numbers(output: Any) -> Tensor:
    """Return a tensor unchanged; concatenate a dictionary or tuple of outputs to one column (N, m, 1) per image."""
    if isinstance(output, Tensor):
        return output
    tensors = float_tensors(output)
    if any(leaf.dim() == 0 or len(leaf) != len(tensors[0]) for leaf in tensors) or not tensors:
        raise DataError("outputs are compared image by image: give networks whose outputs have an entry for each image")
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in tensors], 1).unsqueeze(-1)


def gives_classes(outputs: Tensor) -> bool:
    """Tell whether outputs are one row of class scores (N, C) per image.

    Raises
    ------
    RecipeError
        The outputs are no tensor, from which alone a child can learn.
    """
    if not isinstance(outputs, Tensor):
        raise RecipeError(
            f"the networks give a {type(outputs).__name__} of outputs, and a child can learn from one tensor only: "
            "wrap them so that they return it, or choose refit none"
        )
    return outputs.dim() == 2 and outputs.shape[1] > 1


def distance_of(outputs: Tensor) -> Distance:
    """Return the distance that outputs (N, ...) are compared by."""
    return CROSS_ENTROPY if gives_classes(outputs) else SQUARED_ERROR


def _numbers(outputs: Tensor) -> int:
    return max(1, outputs[0].numel())


def _log(share: float) -> float:
    return float(torch.tensor(share, dtype=torch.float32).log())
