r"""Frank-Wolfe over all groups of many networks at once (Crisostomi et al. 2024, C2M3, section 4).

Every network i has a doubly stochastic :math:`X_i` for each group, towards a universe that all share. With
:math:`M_i = X_i \theta_i X_i'^T` the network in its order, the similarity of all pairs is
:math:`\|\sum_i w_i M_i\|^2 - \sum_i w_i^2 \|M_i\|^2`: it takes N products, not N squared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from depfuse.align.affinity import Candidates
from depfuse.align.edges import Edges
from depfuse.align.solvers.frank_wolfe import DESCRIPTION, TOLERANCE, USUAL_STEPS
from depfuse.align.solvers.rounding import assign, foretold
from depfuse.align.solvers.start import as_candidates


class UniverseSimilarity:
    """Similarity of all pairs of networks under their candidates.

    Parameters
    ----------
    edges
        Of each network, in the same order; only their sources are read.
    shares
        One weight per network.
    """

    def __init__(self, edges: Sequence[Sequence[Edges]], shares: Sequence[float]) -> None:
        self.edges = list(zip(*edges, strict=True))
        self.shares = shares
        self.sizes: dict[str, tuple[int, torch.device]] = {}
        for e in edges[0]:
            for name, size in zip(e.ends, e.source.shape, strict=False):
                if name is not None:
                    self.sizes[name] = size, e.source.device

    def start(self) -> list[Candidates]:
        """Return the identity for the first network, and uniform candidates for the others."""
        first = {
            name: torch.eye(size, dtype=torch.float32, device=device) for name, (size, device) in self.sizes.items()
        }
        even = {name: torch.full_like(value, 1.0 / len(value)) for name, value in first.items()}
        return [first, *(dict(even) for _ in self.shares[1:])]

    def gradient(self, at: Sequence[Candidates]) -> list[Candidates]:
        """Compute the derivative with respect to each network's candidates."""
        gradients = [{name: torch.zeros_like(value) for name, value in candidates.items()} for candidates in at]
        for networks in self.edges:
            ends = networks[0].ends
            carried = [_carried(e.source, x, ends) for e, x in zip(networks, at, strict=True)]
            placed = [
                share * torch.einsum("ij,jkd->ikd", x[ends[0]], c)
                for share, x, c in zip(self.shares, at, carried, strict=True)
            ]
            total = torch.stack(placed).sum(0)
            for e, x, c, own, share, gradient in zip(
                networks, at, carried, placed, self.shares, gradients, strict=True
            ):
                others = 2.0 * share * (total - own)
                gradient[ends[0]] += others.flatten(1) @ c.flatten(1).T
                if ends[1] is not None:
                    rows = torch.einsum("ij,jld->ild", x[ends[0]], e.source)
                    gradient[ends[1]] += torch.einsum("ikd,ild->kl", others, rows)
        return gradients

    def along(self, at: Sequence[Candidates], step: Sequence[Candidates]) -> np.ndarray:
        """Compute coefficients (5,) of the similarity at `at + t * step`, a polynomial of fourth degree in t."""
        total = np.zeros(5)
        for networks in self.edges:
            ends = networks[0].ends
            parts: list[Tensor | None] = [None] * 3
            for e, x, s, share in zip(networks, at, step, self.shares, strict=True):
                stays, moves = _carried(e.source, x, ends), _carried(e.source, s, ends)
                product = [
                    torch.einsum("ij,jkd->ikd", x[ends[0]], stays),
                    torch.einsum("ij,jkd->ikd", s[ends[0]], stays),
                    torch.zeros((), dtype=torch.float32),
                ]
                if ends[1] is not None:
                    product[1] = product[1] + torch.einsum("ij,jkd->ikd", x[ends[0]], moves)
                    product[2] = torch.einsum("ij,jkd->ikd", s[ends[0]], moves)
                weighted = [share * p for p in product]
                total -= _square(weighted)
                parts = [
                    p if sum_so_far is None else sum_so_far + p for sum_so_far, p in zip(parts, weighted, strict=True)
                ]
            total += _square([p for p in parts if p is not None])
        return total

    def __call__(self, at: Sequence[Candidates]) -> float:
        """Compute the similarity."""
        still = [{name: torch.zeros_like(value) for name, value in candidates.items()} for candidates in at]
        return float(self.along(at, still)[0])


def _carried(source: Tensor, candidates: Candidates, ends: tuple[str, str | None]) -> Tensor:
    """Permute the channels of edges at their second end to the universe's order."""
    return source if ends[1] is None else torch.einsum("jld,kl->jkd", source, candidates[ends[1]])


def _square(parts: Sequence[Tensor]) -> np.ndarray:
    """Compute the coefficients of the squared norm of parts[0] + t parts[1] + t^2 parts[2]."""
    coefficients = np.zeros(5)
    for i, first in enumerate(parts):
        for j, second in enumerate(parts):
            coefficients[i + j] += float((first * second).double().sum())
    return coefficients


def highest(coefficients: np.ndarray) -> float:
    """Find the maximum in [0, 1] of a polynomial (coefficients in ascending order)."""
    roots: list[complex] = np.polynomial.Polynomial(coefficients).deriv().roots().astype(complex).tolist()
    inside = [root.real for root in roots if abs(root.imag) < 1e-9 and 0.0 < root.real < 1.0]
    return max((1.0, *inside, 0.0), key=lambda t: value(coefficients, t))


def value(coefficients: np.ndarray, t: float) -> float:
    """Evaluate a polynomial (coefficients in ascending order) at t."""
    return sum(float(c) * t**power for power, c in enumerate(coefficients))


def frank_wolfe_of_universe(
    edges: Sequence[Sequence[Edges]], shares: Sequence[float], iterations: int
) -> tuple[list[dict[str, Tensor]], bool]:
    """Maximise the similarity; return every network's best permutations, and whether the iteration converged.

    Each step goes towards the permutations that are best for the gradient, as far as the similarity rises on the way.
    """
    similarity = UniverseSimilarity(edges, shares)
    with torch.no_grad():
        at = similarity.start()
        best, converged = (-float("inf"), [assign(candidates) for candidates in at]), False
        device = next((device for _, device in similarity.sizes.values()), torch.device("cpu"))
        for _ in foretold(DESCRIPTION, iterations, USUAL_STEPS, device):
            gradient = similarity.gradient(at)
            orders = [assign(candidates) for candidates in gradient]
            vertex = [as_candidates(o, x) for o, x in zip(orders, at, strict=True)]
            best = max(best, (similarity(vertex), orders), key=lambda entry: entry[0])
            step = [{name: v[name] - x[name] for name in x} for v, x in zip(vertex, at, strict=True)]
            along = similarity.along(at, step)
            length = highest(along)
            at = [{name: x[name] + length * s[name] for name in x} for x, s in zip(at, step, strict=True)]
            reached = value(along, length)
            if reached - along[0] <= TOLERANCE * abs(reached):
                converged = True
                break
        rounded = [assign(candidates) for candidates in at]
        vertex = [as_candidates(o, x) for o, x in zip(rounded, at, strict=True)]
        best = max(best, (similarity(vertex), rounded), key=lambda entry: entry[0])
    return best[1], converged
