"""Settings of the goal: which network comes out."""

from __future__ import annotations

from typing import Literal

from depfuse.recipe.fields import MOST_STEPS, Choice, Registry, setting
from depfuse.recipe.refits import TARGETS, Targets


class Goal(Choice):
    """Which network comes out."""


class Child(Goal):
    """The fused child."""

    name: Literal["child"] = "child"


class Best(Goal):
    """The best of a family: parents with their heads refitted, merged from each stage on, averages; each refitted.

    The one that agrees best with the ensemble on held-out calibration images is kept.
    """

    name: Literal["best"] = "best"
    targets: Targets = setting("clusters", f"what refits of the candidates aim at: {TARGETS}")
    steps: int = setting(160, "steps of all layers together towards the ensemble's outputs", ge=0, le=MOST_STEPS)
    augment: bool = setting(True, "these steps see the calibration images flipped and shifted anew each time")


GOALS = Registry(Child, Best)
