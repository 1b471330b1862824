r"""Entropic optimal transport between uniform masses, stable for little entropy and quick for many channels.

Sinkhorn's iteration in the log domain takes two exponentials of each cost per step. Here steps of a block scale a
kernel, :math:`K_{ij} = \exp(u_i + v_j - C_{ij} / \epsilon)`, whose potentials u and v take in the scalings before these
leave the range of numbers (Schmitzer 2019, section 3.3): two products with K per step, the same iterates but for
rounding. For large kernels a lighter one takes most steps: with little entropy most entries are next to nothing, and
are left out (as in section 3.3 there); where they are not, it is in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.special import logsumexp

BLOCK = 10  # steps, after which column sums and scalings are checked
FAR = 100.0  # largest logarithm of a scaling that potentials have not taken in
EXACT = 1e-9  # norm of what the column sums miss, below which the iteration ends, as in POT
LIGHT_FROM = 256  # channels from which a lighter kernel is used
CALM = 3.0  # largest change of a logarithm of a scaling in a block, below which it is
NOTHING = 1e-27  # entries that are left out: thousands of them are no part of a sum of 1e-4 in float64, however scaled
NEAR = 10.0  # largest logarithm of a scaling that a lighter kernel's potentials have not taken in
FULL = 0.1  # share of other entries from which it is in float32
NEARLY_EXACT = 1e-6  # norm of what the column sums miss, below which float32 is not enough


def entropic(cost: np.ndarray, regularisation: float, steps: int, light_from: int = LIGHT_FROM) -> np.ndarray:
    r"""Minimise :math:`\langle T, C \rangle + \epsilon \sum_{ij} T_{ij} \log T_{ij}` over plans with uniform marginals.

    Parameters
    ----------
    cost
        (n_target, n_source), finite.
    regularisation
        The weight of the entropy.
    steps
        Limit of iterations; the plan reached by then need not have uniform columns.
    light_from
        Number of channels from which most steps take a lighter kernel.

    Returns
    -------
    ndarray
        The plan (n_target, n_source), whose rows are uniform.
    """
    logits = cost / -regularisation
    rows, columns = (1.0 / size for size in cost.shape)
    # The first step is in the log domain: from then on every row and column of the kernel has entries that count.
    u, v = _logarithmic(logits, np.zeros(len(logits)), 1)
    kernel = _Kernel.of(_entries(logits, u, v))
    light = min(cost.shape) >= light_from
    x, y, sums, done = *(np.ones(size) for size in cost.shape), kernel.column_sums(), 1
    while done < steps and (missed := np.linalg.norm(y * sums - columns)) >= EXACT:
        count, before = min(BLOCK, steps - done), x
        if missed < NEARLY_EXACT:
            light = False
        with np.errstate(all="ignore"):
            for _ in range(count):
                y = columns / sums
                x = rows / (kernel.entries @ y.astype(kernel.type, copy=False))
                sums = kernel.transposed @ x.astype(kernel.type, copy=False)
            farthest = max(float(np.abs(np.log(scaling)).max()) for scaling in (x, y))
            wanted = light and bool(np.abs(np.log(x / before)).max() <= CALM)
        done += count
        if farthest <= kernel.farthest and wanted == kernel.light:
            continue
        if np.isfinite(farthest):
            u, v = u + np.log(x), v + np.log(y)
        else:
            u, v = _logarithmic(logits, u + np.log(before), count)
        kernel = (_Kernel.lighter if wanted else _Kernel.of)(_entries(logits, u, v))
        x, y, sums = *(np.ones(size) for size in cost.shape), kernel.column_sums()
    plan = _entries(logits, u, v) if kernel.light else kernel.entries
    if kernel.light:
        x = rows / (plan @ y)
    plan *= x[:, None]
    plan *= y
    return plan


@dataclass(frozen=True)
class _Kernel:
    """A kernel and its transpose, in float64 or `light`: without entries that are next to nothing, or in float32."""

    entries: Any
    transposed: Any
    light: bool = False

    @classmethod
    def of(cls, entries: np.ndarray) -> _Kernel:
        return cls(entries, entries.T)

    @classmethod
    def lighter(cls, entries: np.ndarray) -> _Kernel:
        entries[entries <= NOTHING] = 0.0
        if np.count_nonzero(entries) < FULL * entries.size:
            sparse = csr_array(entries)
            return cls(sparse, sparse.T.tocsr(), light=True)
        single = entries.astype(np.float32)
        return cls(single, single.T, light=True)

    @property
    def type(self) -> np.dtype:
        """The type of numbers."""
        found: np.dtype = self.entries.dtype
        return found

    @property
    def farthest(self) -> float:
        """Largest logarithm of a scaling that potentials need not take in."""
        return NEAR if self.light else FAR

    def column_sums(self) -> np.ndarray:
        """Sum each column, in float64."""
        sums: np.ndarray = self.entries.sum(0, dtype=np.float64)
        return sums


def _entries(logits: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    kernel: np.ndarray = logits + u[:, None]
    kernel += v
    np.exp(kernel, out=kernel)
    return kernel


def _logarithmic(logits: np.ndarray, u: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Take steps in the log domain, which no cost is too large for."""
    for _ in range(steps):
        v = -np.log(logits.shape[1]) - logsumexp(logits + u[:, None], axis=0)
        u = -np.log(len(logits)) - logsumexp(logits + v, axis=1)
    return u, v
