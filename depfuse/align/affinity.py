r"""The affinity between pairs of channels, applied as an operator without its matrix.

A candidate (i, j) matches channel i of the target to channel j of the source. Two candidates (i, j) and (k, l) support
each other by the similarity of the edges between the channels, :math:`\exp(-\|A[i, k] - B[j, l]\|)`. For a network of
139 channels the matrix of all candidates has 19,321 rows. Here it is only ever multiplied with a vector, layer by layer
(Liu et al. 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depfuse.align.costs import standardised
from depfuse.align.edges import Edges
from depfuse.networks.stopwatch import Stopwatch

EXACT = 2**26  # pairs of edges of one tensor up to which the affinity is exact: 256 MiB in float32
KEPT = 2**28  # pairs of edges of all tensors that are kept in memory: 1 GiB in float32
AT_ONCE = 2**24  # pairs of edges computed at a time
TIMED = 2**16  # edges whose features are timed, of a tensor that has more
RANK = 64  # landmarks of a low-rank affinity, half from each network: its features per edge

Candidates = dict[str, Tensor]  # group name -> (n, n) weight of each candidate


@dataclass(frozen=True, eq=False)
class _Exact:
    """Affinities (n * n', m * m') between candidates at both ends, computed in rows and kept if `rows` is set."""

    target: Tensor
    source: Tensor
    kept: Tensor | None
    at_once: int = AT_ONCE

    @classmethod
    def of(cls, target: Tensor, source: Tensor, keep: bool, at_once: int = AT_ONCE) -> _Exact:
        affinity = cls(target, source, None, at_once)
        return cls(target, source, torch.cat(list(affinity._rows()))) if keep else affinity

    def _rows(self) -> Iterable[Tensor]:
        return [self.kept] if self.kept is not None else _rows(self.target, self.source, self.at_once)

    def to_first(self, second: Tensor) -> Tensor:
        """Compute the support (n, n') of candidates at the first end by candidates (m, m') at the second."""
        parts = [rows @ second.reshape(-1) for rows in self._rows()]
        return torch.cat(parts).reshape(len(self.target), len(self.source))

    def to_second(self, first: Tensor) -> Tensor:
        """Compute the support (m, m') of candidates at the second end by candidates (n, n') at the first."""
        flat, total, done = first.reshape(-1), None, 0
        for rows in self._rows():
            part = flat[done : done + len(rows)] @ rows
            total = part if total is None else total + part
            done += len(rows)
        assert total is not None
        return total.reshape(self.target.shape[1], self.source.shape[1])

    def part(self) -> tuple[_Exact, float]:
        """Return the operator of some target channels, as many as are computed at a time, and the quotient of all."""
        few = self.target[: _step(self.target, self.source, self.at_once)]
        return (self, 1.0) if self.kept is not None else (replace(self, target=few), len(self.target) / len(few))


def _rows(target: Tensor, source: Tensor, at_once: int) -> Iterator[Tensor]:
    """Compute affinities (b * n', m * m') of edges, for some target channels at a time."""
    m, (other, columns, _) = target.shape[1], source.shape
    for rows in torch.split(target, _step(target, source, at_once)):
        near = affinities(rows.flatten(0, 1), source.flatten(0, 1)).reshape(len(rows), m, other, columns)
        yield near.transpose(1, 2).reshape(len(rows) * other, m * columns)


def _step(target: Tensor, source: Tensor, at_once: int) -> int:
    """Count the target channels whose affinities are computed at a time."""
    return max(1, at_once // (target.shape[1] * source.shape[0] * source.shape[1]))


def affinities(first: Tensor, second: Tensor) -> Tensor:
    """Compute exp(-distance) between rows (n, d) and (m, d)."""
    if first.shape[1] == 1:
        return (first - second.T).abs_().neg_().exp_()
    # Not by a matrix product, which leaves equal edges a distance of 1e-4.
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").neg_().exp_()


@dataclass(frozen=True, eq=False)
class _LowRank:
    r"""Affinities as products of few features, :math:`K \approx \Phi_A \Phi_B^T` (Nystroem; Williams & Seeger 2000).

    `target` and `source` are (rank, n, m) features of the edges.
    """

    target: Tensor
    source: Tensor

    @classmethod
    def of(cls, target: Tensor, source: Tensor) -> _LowRank:
        both = [target.flatten(0, 1), source.flatten(0, 1)]
        generator = torch.Generator().manual_seed(0)
        drawn = [edges[torch.randperm(len(edges), generator=generator)[: RANK // 2].to(edges.device)] for edges in both]
        landmarks = torch.cat(drawn)
        values, vectors = torch.linalg.eigh(affinities(landmarks, landmarks).double())
        large = values > 1e-6 * values.max()
        root = (vectors[:, large] * values[large].rsqrt()).to(target.dtype)
        features = [
            torch.cat([affinities(part, landmarks) @ root for part in torch.split(edges, AT_ONCE // RANK)])
            for edges in both
        ]
        shaped = [f.reshape(*t.shape[:2], -1).movedim(-1, 0) for f, t in zip(features, (target, source), strict=True)]
        return cls(shaped[0].contiguous(), shaped[1].contiguous())

    def to_first(self, second: Tensor) -> Tensor:
        """Compute the support as `_Exact.to_first` does."""
        total = torch.zeros(self.target.shape[1], self.source.shape[1], dtype=torch.float32, device=second.device)
        for target, source in zip(self.target, self.source, strict=True):
            total += (target @ second) @ source.T
        return total

    def to_second(self, first: Tensor) -> Tensor:
        """Compute the support as `_Exact.to_second` does."""
        total = torch.zeros(self.target.shape[2], self.source.shape[2], dtype=torch.float32, device=first.device)
        for target, source in zip(self.target, self.source, strict=True):
            total += (target.T @ first) @ source
        return total

    def part(self) -> tuple[_LowRank, float]:
        """Return the operator of one feature, and the number of features."""
        return _LowRank(self.target[:1], self.source[:1]), float(len(self.target))


class Affinity:
    """The affinity matrix of a matching problem as an operator on candidates.

    Fixed nodes (inputs and outputs of the network) are matched to themselves: their support is constant.

    Parameters
    ----------
    edges
        Edges of the groups to match.

    Attributes
    ----------
    sizes
        Group name -> number of channels, for each group with an edge.
    standing
        Group name -> (n, n) support of candidates by fixed nodes.
    share
        Factor of all affinities.
    device
        Of all tensors.
    """

    def __init__(self, edges: Iterable[Edges]) -> None:
        self.sizes: dict[str, int] = {}
        self.standing: Candidates = {}
        self.share = 1.0
        self.device = torch.device("cpu")
        self._kernels: list[tuple[str, str, _Exact | _LowRank]] = []
        pairs = 0
        for part in edges:
            self.device = part.target.device
            n, m, _ = part.target.shape
            if not part.target.numel():
                continue
            first, second = part.ends
            self.sizes[first] = n
            if second is None:
                for k in range(m):
                    near = affinities(part.target[:, k], part.source[:, k])
                    self.standing[first] = self.standing[first] + near if first in self.standing else near
                continue
            self.sizes[second] = m
            if _is_large(part):
                self._kernels.append((first, second, _LowRank.of(part.target, part.source)))
                continue
            pairs += (n * m) ** 2
            self._kernels.append((first, second, _Exact.of(part.target, part.source, keep=pairs <= KEPT)))
        for name, size in self.sizes.items():
            self.standing.setdefault(name, torch.zeros(size, size, dtype=torch.float32, device=self.device))

    @property
    def exact(self) -> bool:
        """True if no tensor is so large that its affinities are approximated."""
        return not any(isinstance(kernel, _LowRank) for _, _, kernel in self._kernels)

    def mix(self, costs: Mapping[str, Tensor], share: float) -> None:
        """Add support by low activation costs, with this share of the spread of all support."""
        support = self.support(self.uniform())
        for name in self.sizes:
            self.standing[name] = (1.0 - share) * self.standing[name]
            if name in costs:
                similarity = -standardised(costs[name]).to(self.standing[name])
                self.standing[name] += share * support[name].std(correction=0) * (similarity - similarity.min())
        self.share = 1.0 - share

    def uniform(self) -> Candidates:
        """Weight all candidates of a group equally, with the number of channels as their sum."""
        return {name: torch.full_like(self.standing[name], 1.0 / size) for name, size in self.sizes.items()}

    def __call__(self, weights: Candidates) -> Candidates:
        """Multiply the matrix by the weights: the support of every candidate from all others."""
        support = {name: torch.zeros_like(value) for name, value in weights.items()}
        for first, second, kernel in self._kernels:
            support[first] += self.share * kernel.to_first(weights[second])
            support[second] += self.share * kernel.to_second(weights[first])
        return support

    def seconds(self, weights: Candidates, watch: Stopwatch) -> float:
        """Estimate the seconds of a multiplication by a part of every kernel; those of one shape take as long."""
        known: dict[tuple[int, ...], float] = {}
        total = 0.0
        for first, second, kernel in self._kernels:
            if kernel.target.shape not in known:
                part, times = kernel.part()
                both = watch.seconds(part.to_first, weights[second]) + watch.seconds(part.to_second, weights[first])
                known[kernel.target.shape] = times * both
            total += known[kernel.target.shape]
        return total

    def support(self, weights: Candidates) -> Candidates:
        """Compute the same with the support of fixed nodes."""
        return {name: value + self.standing[name] for name, value in self(weights).items()}


def _is_large(edges: Edges) -> bool:
    n, m, _ = edges.target.shape
    return edges.ends[1] is not None and (n * m) ** 2 > EXACT


def seconds_of_building(edges: Iterable[Edges], watch: Stopwatch, timed: int = TIMED) -> float:
    """Estimate the seconds that affinities of large tensors and of fixed nodes take, by a part of each shape.

    Parts that fit into a cache are quicker: two ResNet50s took 1.2 times as long as this says. Those of small tensors
    take a second or two in all: `KEPT` of them are computed at most.
    """
    known: dict[tuple[int, ...], float] = {}
    total = 0.0
    for part in edges:
        n, m, d = part.target.shape
        fixed, kind = part.ends[1] is None, (n, m, d, part.ends[1] is None)
        if kind not in known and part.target.numel():
            if fixed:
                known[kind] = watch.seconds(affinities, part.target[:, 0], part.source[:, 0]) * m
            elif _is_large(part):
                few = max(1, timed // m)
                some = part.target[:few], part.source[:few]
                known[kind] = watch.seconds(_LowRank.of, *some) * n / len(some[0])
        total += known.get(kind, 0.0)
    return total


def inner(first: Candidates, second: Candidates) -> float:
    """Sum the products of two vectors of candidates."""
    return sum(float((first[name].double() * second[name].double()).sum()) for name in first)
