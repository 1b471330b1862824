r"""Spectral norms of an average, whose singular vectors are its own and no average of its parents'.

A layer with a spectral norm computes with :math:`W / \sigma`, where :math:`\sigma = u^T W v` and u, v are buffers:
the first singular vectors of W, as power iteration left them. Averaged vectors belong to no matrix, and a sigma that is
much too small makes the weights as much too large. So the parents' :math:`W_p / \sigma_p` are averaged, each counting
by its share however large :math:`W_p` is, and the average gets its own vectors. Of u the length is chosen such that the
weight has the norm that the parents' have by their shares, 1 where their iteration has converged: a parent that has
all shares, and parents that are equal, give what they compute.

Source: Miyato et al. 2018 (Spectral normalization), section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from depfuse.networks.computed_weights import SPECTRAL_NORM, computed_weights


@dataclass(frozen=True)
class _Norm:
    """State-dict keys of one norm's weight and vectors, and what makes a matrix of the weight."""

    weight: str
    left: str
    right: str
    matrix: Callable[[Tensor], Tensor]

    def sigma(self, state: Mapping[str, Tensor]) -> float:
        """Compute what the weight is divided by."""
        left, right = state[self.left].double(), state[self.right].double()
        return float(left @ self.matrix(state[self.weight].double()) @ right)


class SpectralNorms:
    """The spectral norms of parents, and those of their average.

    Parameters
    ----------
    models
        Parents of one architecture.
    shares
        The share of each parent for the tensor of a key.
    """

    def __init__(self, models: Sequence[nn.Module], shares: Callable[[str], Sequence[float]]) -> None:
        self._norms = list(_norms(models[0]))
        self._lengths: dict[str, float] = {}  # of the averaged originals
        self._kept: dict[str, float] = {}  # the norm of the averaged weight
        self._sigmas: list[dict[str, float]] = []
        states = [model.state_dict() for model in models] if self._norms else []
        for state in states:
            self._sigmas.append({norm.weight: norm.sigma(state) or 1.0 for norm in self._norms})
        for norm in self._norms:
            weighed = list(zip(shares(norm.weight), states, self._sigmas, strict=True))
            self._lengths[norm.weight] = sum(share * abs(sigma[norm.weight]) for share, _, sigma in weighed)
            self._kept[norm.weight] = sum(
                share * _largest(norm.matrix(state[norm.weight].double())) / abs(sigma[norm.weight])
                for share, state, sigma in weighed
            )

    def scaled(self, parent: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring a parent's originals to the lengths that its weights have for the others."""
        for norm in self._norms:
            own, tensor = self._sigmas[parent][norm.weight], state[norm.weight]
            if own != self._lengths[norm.weight]:
                state[norm.weight] = (tensor.double() * (self._lengths[norm.weight] / own)).to(tensor.dtype)
        return state

    def renew(self, child: nn.Module) -> None:
        """Give the average its own singular vectors, in place."""
        state = child.state_dict()
        for norm in self._norms:
            matrix = norm.matrix(state[norm.weight].double())
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            state[norm.left].copy_(left[:, 0] / (self._kept[norm.weight] or 1.0))
            state[norm.right].copy_(right[0])


def _largest(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def _norms(model: nn.Module) -> Iterator[_Norm]:
    stored = model.state_dict().keys()
    for norm, (weight, left, right) in computed_weights(model, SPECTRAL_NORM):
        if left in stored:  # a vector is normalised exactly
            matrix = norm.reshape_weight_to_matrix if isinstance(norm, SpectralNorm) else norm._reshape_weight_to_matrix
            yield _Norm(weight, left, right, matrix)
