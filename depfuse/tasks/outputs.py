r"""What a network's outputs are: how those of several parents are one, how far apart two are, and how that curves.

Outputs (N, C) with two numbers or more are class scores, compared by cross-entropy. Everything else is numbers that
mean themselves, compared by squared error: one output (N, 1) or (N,), of which a softmax says nothing, and maps,
sequences or images, and all that a dictionary or a tuple holds. Maps of class scores fall under these too: their
squared distance is that of the logits.

A divergence D comes with its slope and the Gauss-Newton factor B of its curvature :math:`H = B^\top B`, so that steps
by curvature need no more than this file to know another kind of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from depfuse.errors import DataError, RecipeError


class Distance(Protocol):
    """How outputs of one kind are compared; `outputs`, `target` and `wanted` are (N, ...)."""

    def together(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """What the parents' outputs are together, as the target of `divergence`."""

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """How far outputs are from the target, summed over images."""

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """The divergence's derivative by the outputs (N, ...)."""

    def curved(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """The product H d of the divergence's curvature with a change d of the outputs (N, ...)."""

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """The product B^T s at temperature 1, for vectors s (K, C) and the outputs of one image (C,)."""

    def drawn(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Random (N, ...) with the curvature as covariance."""

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """What the parents say together, as `losses` wants it."""

    def said(self, outputs: Tensor) -> Tensor:
        """What outputs say, as `losses` wants it."""

    def losses(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """How far each image's outputs are from what is wanted (N,)."""

    def centred(self, directions: Tensor) -> Tensor:
        """Directions of the outputs (N, ...) without what changes nothing."""

    def alike(self, outputs: Tensor, target: Tensor) -> Tensor:
        """On how many images both predict the same; not a number where nothing is predicted."""

    def unit(self, target: Tensor) -> float:
        """The divergence, per image, that is large."""


class CrossEntropy:
    r"""Of class scores z (N, C): :math:`\tau^2\, \mathrm{KL}(\mathrm{softmax}(t / \tau), \mathrm{softmax}(z / \tau))`.

    At high temperatures :math:`\tau` half the squared distance of the scores, each without its mean, over C.
    """

    def together(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Scores whose softened probabilities are the mean of the parents'."""
        weighted = [
            (own / temperature).log_softmax(1) + _log(share) for own, share in zip(outputs, shares, strict=True)
        ]
        return temperature * torch.logsumexp(torch.stack(weighted), 0)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """See the class."""
        wanted, given = (target / temperature).log_softmax(-1), (outputs / temperature).log_softmax(-1)
        return temperature**2 * (wanted.exp() * (wanted - given)).sum()

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Differences of the softened probabilities."""
        return temperature * ((outputs / temperature).softmax(-1) - (target / temperature).softmax(-1))

    def curved(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """By H = diag(p) - p p^T."""
        p = (outputs / temperature).softmax(-1)
        return p * (change - (p * change).sum(-1, keepdim=True))

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        r"""Row c of B is :math:`\sqrt{p_c} (e_c - p)`."""
        p = outputs.softmax(0)
        vectors = signs * p.sqrt()
        return vectors - vectors.sum(1, keepdim=True) * p

    def drawn(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """A class drawn, less the classes' probabilities."""
        p = (outputs / temperature).softmax(-1)
        classes = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
        return torch.zeros_like(p).scatter_(-1, classes, 1.0) - p

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """The mean of the parents' probabilities."""
        return torch.stack([share * own.softmax(1) for share, own in zip(shares, outputs, strict=True)]).sum(0)

    def said(self, outputs: Tensor) -> Tensor:
        """Probabilities."""
        return outputs.softmax(1)

    def losses(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropies, nats, under probabilities."""
        return -(wanted * outputs.softmax(1).clamp_min(1e-30).log()).sum(1)

    def centred(self, directions: Tensor) -> Tensor:
        """Without the mean over the classes: it changes no probability."""
        return directions - directions.mean(-1, keepdim=True)

    def alike(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Whether the classes with the highest scores are the same."""
        return (outputs.argmax(1) == target.argmax(1)).sum()

    def unit(self, target: Tensor) -> float:
        """One nat."""
        return 1.0


class SquaredError:
    r"""Of m numbers per image, :math:`\lVert z - t \rVert^2 / 2m`; a temperature means nothing to it."""

    def together(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """The mean of the parents' outputs."""
        return self.mean(outputs, shares)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """See the class."""
        return 0.5 * self.losses(outputs, target).sum()

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Differences."""
        return (outputs - target) / _numbers(outputs)

    def curved(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """By H = 1 / m."""
        return change / _numbers(outputs)

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """B is the identity: numbers with a deviation of one."""
        return signs

    def drawn(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Random signs."""
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        drawn: Tensor = signs / _numbers(outputs) ** 0.5
        return drawn

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """The mean of the parents' outputs."""
        return torch.stack([share * own for share, own in zip(shares, outputs, strict=True)]).sum(0)

    def said(self, outputs: Tensor) -> Tensor:
        """They say themselves."""
        return outputs

    def losses(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared differences."""
        return (outputs - wanted).reshape(len(outputs), -1).square().mean(1)

    def centred(self, directions: Tensor) -> Tensor:
        """Every direction changes something."""
        return directions

    def alike(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Nothing is predicted that could be right or wrong."""
        return torch.full((), torch.nan, dtype=torch.float32, device=outputs.device)

    def unit(self, target: Tensor) -> float:
        """Half the variance of the target over images."""
        return 0.5 * float(target.reshape(len(target), -1).var(0, correction=0).mean())


CROSS_ENTROPY = CrossEntropy()
SQUARED_ERROR = SquaredError()


def as_numbers(output: Any) -> Tensor:
    """A tensor as it is; of a dictionary or tuple of outputs, all numbers of an image in one column (N, m, 1)."""
    if isinstance(output, Tensor):
        return output
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if any(leaf.dim() == 0 or len(leaf) != len(found[0]) for leaf in found) or not found:
        raise DataError("outputs are compared image by image: give networks whose outputs have an entry for each image")
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in found], 1).unsqueeze(-1)


def gives_classes(outputs: Tensor) -> bool:
    """Whether outputs are one row of class scores (N, C) per image.

    Raises
    ------
    RecipeError
        They are no tensor: what a child learns from must be one.
    """
    if not isinstance(outputs, Tensor):
        raise RecipeError(
            f"the networks give a {type(outputs).__name__} of outputs, and a child can learn from one tensor only: "
            "wrap them so that they return it, or choose refit none"
        )
    return outputs.dim() == 2 and outputs.shape[1] > 1


def distance_of(outputs: Tensor) -> Distance:
    """What outputs (N, ...) are compared by."""
    return CROSS_ENTROPY if gives_classes(outputs) else SQUARED_ERROR


def _numbers(outputs: Tensor) -> int:
    return max(1, outputs[0].numel())


def _log(share: float) -> float:
    return float(torch.tensor(share, dtype=torch.float32).log())
