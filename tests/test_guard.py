"""Steps that lead away are noticed and taken back; chance is not taken for them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depfuse.merge.refit.guard import CHECKED, WORSE, Guard


def watch(guard: Guard, losses: list[float], first: int = 0) -> list[int | None]:
    """For every loss the number of the step whose weights are to be gone back to."""
    found = []
    for number, loss in enumerate(losses, start=first):
        maps = {"weight": torch.full((1,), float(number))}
        back = guard.where_to_go_on(torch.tensor(loss), maps)
        found.append(None if back is None else int(back["weight"]))
    return found


def test_losses_that_fall_or_stay_are_left_alone():
    losses = [1.0 / (1 + step / 10) for step in range(5 * CHECKED)] + [0.2] * 5 * CHECKED
    assert watch(Guard(), losses) == [None] * len(losses)


def test_at_first_steps_are_measured_by_the_first_loss():
    alone = [None] * (CHECKED - 1)
    assert watch(Guard(), [1.0] + [1.9] * (CHECKED - 1)) == [*alone, None]
    assert watch(Guard(), [1.0] + [2.5] * (CHECKED - 1)) == [*alone, 0]


def test_what_is_kept_are_the_weights_before_the_best_steps():
    guard, alone = Guard(), [None] * (CHECKED - 1)
    watch(guard, [1.0] * CHECKED)
    # A mean that is low may end far away: what it began with is safe, what it ended with is not.
    assert watch(guard, [0.3] * (CHECKED - 1) + [1.9], CHECKED) == [None] * CHECKED
    watch(guard, [0.55] * CHECKED, 2 * CHECKED)
    assert watch(guard, [1.9] * CHECKED, 3 * CHECKED) == [*alone, CHECKED]


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_losses_that_are_no_number_lead_away(loss):
    guard = Guard()
    watch(guard, [1.0] * CHECKED)
    assert watch(guard, [1.0] * (CHECKED - 1) + [loss], CHECKED)[-1] == 0


def test_more_is_forgiven_every_time():
    """One mean that was low by luck holds up a few steps, not all."""
    guard = Guard()
    watch(guard, [0.5] * CHECKED)
    backs = [watch(guard, [1.0] * CHECKED)[-1] for _ in range(6)]
    needed = math.ceil(math.log(2.0, WORSE)) - 1
    assert backs == [0] * needed + [None] * (6 - needed)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60), st.data())
def test_it_goes_on_from_its_state(losses, data):
    cut = data.draw(st.integers(0, len(losses)))
    whole, resumed = Guard(), Guard()
    wanted = watch(whole, losses)
    before = Guard()
    watch(before, losses[:cut])
    resumed.load_state_dict(before.state_dict(), {"weight": torch.zeros(1)})
    assert watch(resumed, losses[cut:], cut) == wanted[cut:]
