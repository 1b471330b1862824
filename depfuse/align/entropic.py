r"""Entropic optimal transport between uniform masses, stable for little entropy and quick for many channels.

Sinkhorn's iteration in the log domain takes two exponentials of each cost per step. Here steps of a block scale a
kernel, :math:`K_{ij} = \exp(u_i + v_j - C_{ij} / \epsilon)`, whose potentials u and v take in the scalings before these
leave the range of numbers (Schmitzer 2019, section 3.3): two products with K per step, the same iterates but for
rounding.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

BLOCK = 10  # steps, after which column sums and scalings are checked
FAR = 100.0  # largest logarithm of a scaling that potentials have not taken in
EXACT = 1e-9  # norm of what the column sums miss, below which the iteration ends, as in POT


def entropic(cost: np.ndarray, regularisation: float, steps: int) -> np.ndarray:
    r"""Minimise :math:`\langle T, C \rangle + \epsilon \sum_{ij} T_{ij} \log T_{ij}` over plans with uniform marginals.

    Parameters
    ----------
    cost
        (n_target, n_source), finite.
    regularisation
        The weight of the entropy.
    steps
        Limit of iterations; the plan reached by then need not have uniform columns.

    Returns
    -------
    ndarray
        The plan (n_target, n_source), whose rows are uniform.
    """
    logits = cost / -regularisation
    rows, columns = (1.0 / size for size in cost.shape)
    # The first step is in the log domain: from then on every row and column of the kernel has entries that count.
    u, v = _logarithmic(logits, np.zeros(len(logits)), 1)
    kernel, x, y = _kernel(logits, u, v), np.ones(cost.shape[0]), np.ones(cost.shape[1])
    sums, done = kernel.sum(0), 1
    while done < steps and np.linalg.norm(y * sums - columns) >= EXACT:
        count, before = min(BLOCK, steps - done), x
        with np.errstate(all="ignore"):
            for _ in range(count):
                y = columns / sums
                x = rows / (kernel @ y)
                sums = x @ kernel
            farthest = max(float(np.abs(np.log(scaling)).max()) for scaling in (x, y))
        done += count
        if farthest <= FAR:
            continue
        if np.isfinite(farthest):
            u, v = u + np.log(x), v + np.log(y)
        else:
            u, v = _logarithmic(logits, u + np.log(before), count)
        kernel, x, y = _kernel(logits, u, v), np.ones(cost.shape[0]), np.ones(cost.shape[1])
        sums = kernel.sum(0)
    kernel *= x[:, None]
    kernel *= y
    return kernel


def _kernel(logits: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
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
