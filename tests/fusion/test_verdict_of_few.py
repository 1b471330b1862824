"""Scores of few images come with the interval that they stand for."""

from __future__ import annotations

import pytest

from depfuse.evaluate.scores import share_interval
from depfuse.fusion.verdict import too_few
from depfuse.tasks.scores import ACCURACY, AGREEMENT, DICE


def test_the_interval_is_wilsons() -> None:
    # Wilson 1927; Agresti & Coull 1998 give 0.722 to 1 for 10 of 10.
    assert share_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert share_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert share_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)


def test_few_images_are_said() -> None:
    assert too_few(1.0, 1, AGREEMENT) == (
        "1 image tells hardly anything: 100.00 % of so few stands for 21 to 100 % (95 % interval)."
    )
    assert too_few(0.5, 20, ACCURACY).startswith(
        "20 images tell hardly anything: 50.00 % of so few stands for 30 to 70"
    )
    assert too_few(0.9, 1000, ACCURACY) == ""
    assert too_few(0.9, 1, DICE) == "A score of 1 image tells hardly anything of others."
    assert too_few(0.9, 2, DICE) == ""
