"""Steps that lead away are noticed on images that stay the same, and taken back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depfuse.refit.second_order.rollback import WORSE, Rollback


class Learner:
    """Its weights are numbers, and their loss is the number."""

    def __init__(self) -> None:
        self.maps = {"weight": torch.tensor(1.0, dtype=torch.float64)}
        self.taken_back = 0

    def loss(self, images: object) -> float:
        return float(self.maps["weight"])

    def restore(self, maps: dict[str, torch.Tensor]) -> None:
        self.maps, self.taken_back = dict(maps), self.taken_back + 1

    def move(self, loss: float) -> None:
        self.maps = {"weight": torch.tensor(loss, dtype=torch.float64)}


def compared(rollback: Rollback, learner: Learner, losses: list[float]) -> list[float]:
    """The loss of the weights with which it goes on, after each."""
    found = []
    for loss in losses:
        learner.move(loss)
        rollback.compare()
        found.append(learner.loss(None))
    return found


def test_it_goes_back_to_the_best_weights_so_far():
    learner = Learner()
    rollback = Rollback(learner, [])
    rollback.compare()
    assert compared(rollback, learner, [0.5, 0.6, 0.7, 3.0]) == [0.5, 0.6, 0.5, 0.5]
    assert learner.taken_back == 2
    assert float(rollback.best["weight"]) == 0.5


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_no_number_leads_away(loss):
    learner = Learner()
    rollback = Rollback(learner, [])
    rollback.compare()
    assert compared(rollback, learner, [loss]) == [1.0]


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=40), st.data())
def test_what_is_gone_on_with_is_never_much_worse_than_the_best(losses, data):
    learner = Learner()
    rollback = Rollback(learner, [])
    rollback.compare()
    cut = data.draw(st.integers(0, len(losses)))
    found = compared(rollback, learner, losses[:cut])
    resumed = Rollback(learner, [])
    resumed.load_state_dict(rollback.state_dict())
    found += compared(resumed, learner, losses[cut:])
    lowest = 1.0
    for loss, kept in zip(losses, found, strict=True):
        assert kept == (loss if loss <= WORSE * lowest else lowest)
        lowest = min(lowest, kept)
    assert resumed.lowest == lowest == float(resumed.best["weight"])
