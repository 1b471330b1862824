r"""Meaning of a network's outputs: what the ensemble of several parents' outputs is, and how far two outputs are apart.

A divergence D comes with its gradient and the Gauss-Newton factor B of its Hessian :math:`H = B^\top B`: another kind
of outputs is another class here, and every step works with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from depfuse.errors import RecipeError
from depfuse.tasks.tallies.tally import Tally


class Task(Protocol):
    """Meaning of outputs of one kind; `outputs` and `target` are (N, ...), one entry per image.

    Attributes
    ----------
    name
        As recipes name it.
    predicts
        Whether outputs predict classes or labels, on which two networks agree or not.
    scalable
        Whether a factor of all outputs changes their confidence alone, and no prediction.
    """

    name: str
    predicts: bool
    scalable: bool

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Task:
        """Build the task of each parent's outputs (N, ...), or one's; raise `RecipeError` of a wrong shape."""

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Combine the parents' outputs into the target of `divergence`."""

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the divergence of outputs from the target, summed over images."""

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the gradient (N, ...) of the divergence with respect to the outputs."""

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Multiply a change d of the outputs (N, ...) by the divergence's Gauss-Newton Hessian: H d."""

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """Compute B^T s at temperature 1, for vectors s (K, m) and the m outputs (...) of one image."""

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
        """Sum over images the share of predictions that are alike; NaN where outputs predict no classes."""

    def unit(self, target: Tensor) -> float:
        """Return the divergence per image that counts as large."""

    def fitted_labels(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Give labels the form by which outputs (N, ...) are learned; raise `DataError` where they do not fit them."""

    def label_loss(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Compute the mean loss of outputs under labels of their form; smoothing spreads a share over all classes."""

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Sum over images the share of predictions that are the labels; NaN where outputs predict none."""

    def tally(self) -> Tally:
        """Begin to score outputs under labels."""


def positions(outputs: Tensor) -> int:
    """Count the places of a map (N, C, ...) at which it gives a row of C outputs; 1 for a row alone."""
    return max(1, outputs.shape[2:].numel())


def softening(outputs: Tensor, temperature: float) -> float:
    """Return the temperature by which outputs (N, C, ...) are softened: 1 for a map, whatever is asked for.

    Softening tells of one row per image what else is likely. A map has a row at each place, most of them of background
    with scores far apart: at high temperatures the distances of these count most, and places in doubt hardly at all.
    """
    return temperature if outputs.dim() < 3 else 1.0


def log_share(share: float) -> float:
    """Compute the logarithm of a share in float32; -inf of none."""
    return float(torch.tensor(share, dtype=torch.float32).log())


def check_shape(name: str, outputs: Sequence[Tensor], fits: bool, wanted: str) -> None:
    """Raise `RecipeError` unless outputs have the shape of a task."""
    if not fits:
        raise RecipeError(
            f"`task={name}` is of outputs {wanted}, and the networks give {tuple(outputs[0].shape)}: choose another"
        )
