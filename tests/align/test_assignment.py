"""Assignments of many channels are of least cost, whichever library computes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from depfuse.align.transport import CONTENDED_FROM, assigned

SIZE = CONTENDED_FROM + 8


def _rank(count: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: -a[:, :count] @ b[:, :count].T


COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "independent": torch.cdist,
    "rank one": _rank(1),
    "rank three": _rank(3),
    "rank one, half silent": lambda a, b: _rank(1)(a.relu(), b.relu()),
    "equal": lambda a, b: torch.ones(len(a), len(b)),
    "far from zero": lambda a, b: 1e6 + _rank(1)(a, b).double(),
    "large": lambda a, b: 1e30 * _rank(1)(a, b).double(),
    "small": lambda a, b: 1e-30 * _rank(1)(a, b).double(),
}


@pytest.mark.parametrize("kind", COSTS)
def test_assignments_have_the_cost_that_scipy_finds(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float32) for _ in range(2))
    cost = COSTS[kind](a, b)
    order = assigned(cost)
    assert order.sort().values.equal(torch.arange(SIZE))
    values = cost.double().numpy()
    best = values[linear_sum_assignment(values)].sum()
    reached = values[np.arange(SIZE), order.numpy()].sum()
    assert reached == pytest.approx(best, rel=1e-9)


def test_costs_of_rank_one_are_assigned_in_sorted_order() -> None:
    """By the rearrangement inequality, for any number of channels."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    order = assigned(-a[:, None] * b[None, :])
    assert order[a.argsort()].equal(b.argsort())


def test_channels_of_equal_cost_keep_their_order() -> None:
    assert assigned(torch.zeros(SIZE, SIZE)).equal(torch.arange(SIZE))
