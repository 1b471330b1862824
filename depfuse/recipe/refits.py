"""Settings of the refits, by which the child's layers are solved for. Nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from depfuse.recipe.fields import MOST_STEPS, Between, Choice, OneOf, Registry, setting
from depfuse.recipe.solvers import facts

Targets = Literal["clusters", "matched"]
TARGETS = "mixtures of the parents' channels that keep what matters to their outputs, or the means of matched channels"
_STEPS = Between(20, 320, log=True)


class Refit(Choice):
    """Refits: how the child's layers are solved for the parents' outputs."""

    closed_form: ClassVar[bool] = True  # whether layers are solved in closed form


class Ridge(Refit):
    """Ridge regression, layer after layer, then steps of all layers together: the best."""

    name: Literal["ridge"] = "ridge"
    targets: Targets = setting("clusters", f"what it aims at: {TARGETS}", search=OneOf())
    steps: int = setting(
        160,
        "steps of all layers together towards the ensemble's outputs, afterwards; 0 for none",
        ge=0,
        le=MOST_STEPS,
        search=_STEPS,
    )
    augment: bool = setting(
        True, "these steps see the calibration images flipped and shifted anew each time", search=OneOf()
    )


class AutoRefit(Ridge):
    """Ridge with images and permutations for networks of up to a billion multiply-adds, else none; the output names it.

    Networks without convolutions and linear layers, and those that cannot be taken apart, are not refitted.
    """

    closed_form: ClassVar[bool] = False

    name: Literal["auto"] = "auto"  # type: ignore[assignment]


class NoRefit(Refit):
    """The averaged weights stay as they are."""

    closed_form: ClassVar[bool] = False

    name: Literal["none"] = "none"


class RegMean(Refit):
    """RegMean (Jin et al. 2023): the mean of the parents' layers, each weighted by the Gram matrix of its inputs."""

    name: Literal["regmean"] = "regmean"


class LeastSquares(Refit):
    """Least squares towards the matched parents' activations (PLeaS)."""

    name: Literal["least-squares"] = "least-squares"


REFITS = Registry(AutoRefit, NoRefit, Ridge, RegMean, LeastSquares)


def refits_of(solver: str) -> tuple[str, tuple[str, ...]]:
    """Return which refits are searched for couplings of a solver."""
    return "", ("ridge", "none", "regmean", "least-squares") if facts(solver).gives != "map" else ()
