"""Which settings of a `Recipe` are searched, over which values, and where each is used: one table beside the recipe.

The smallest example::

    {
        "solver": (OneOf(("emd", "sinkhorn")),),
        "regularisation": (Between(0.001, 1.0, log=True, when=({"solver": ("sinkhorn",)},)),),
    }

is a space of two parameters, of which the second is there only where the first is `sinkhorn`. A new solver, or a new
value of a setting, is searched as soon as it is there; a new setting with a line in `SEARCHED`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from depfuse.align.solvers import SOLVERS, serving
from depfuse.recipe import MIXING, SOFT
from depfuse.recipe.reads import READ, Case
from depfuse.renorm.registry import METHODS


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What all declarations have.

    Attributes
    ----------
    when
        Where the setting is used: in any of these cases, each of which maps other settings to the values that they must
        have, all of them. Everywhere where no case is given.
    label
        Tells the parameter from another one of the same setting, which has other values.
    """

    when: tuple[Case, ...] = ()
    label: str = ""

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether the setting is used; the settings that a case names must be there."""
        return not self.when or any(
            all(settings[name] in allowed for name, allowed in case.items()) for case in self.when
        )


@dataclass(frozen=True)
class Between(Searched):
    """A number from `low` to `high`, both included; whole where both are; `log` spreads its logarithm evenly."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class OneOf(Searched):
    """One of some values: those given, those that a function gives, or if left out all that the setting may have."""

    options: tuple[Any, ...] | Callable[[], tuple[Any, ...]] = ()


@dataclass(frozen=True)
class Ratios(Searched):
    """Shares that sum to one, of which each is that of the first parent times a number from `1 / most` to `most`.

    A search that could give a parent everything would keep the better parent instead of merging.
    """

    most: float


_PERMUTING = tuple(name for name in SOLVERS if name not in (*SOFT, *MIXING))
_NOT_MIXING = tuple(name for name in SOLVERS if name not in MIXING)
_ALONE = ("regmean", "least-squares")  # refits after which BatchNorm is renewed
_NOT = ("auto", "none")  # auto is left open where the solver gives no permutations
_RIDGE: tuple[Case, ...] = ({"refit": ("ridge",)},)
_RENEWING = ("auto", *(name for name, method in METHODS.items() if method.images and name != "reset"))  # auto resets

SEARCHED: dict[str, tuple[Searched, ...]] = {
    "criterion": (OneOf(),),
    "solver": tuple(
        OneOf(partial(serving, criterion), when=({"criterion": (criterion,)},), label=criterion)
        for criterion in ("activations", "weights", "mixture")
    ),
    "distance": (OneOf(when=READ["distance"]),),
    "taps": (OneOf(when=READ["taps"]),),
    "mixture": (Between(0.1, 0.9, when=READ["mixture"]),),
    "regularisation": (
        Between(0.001, 1.0, log=True, when=({"solver": ("sinkhorn",)},)),
        Between(0.1, 1000.0, log=True, when=({"solver": ("cca",)},), label="cca"),
    ),
    "strictness": (Between(0.1, 30.0, log=True, when=READ["strictness"]),),
    "restarts": (Between(1, 8, when=READ["restarts"]),),
    "start": (OneOf(("none", "identity", "activations"), when=READ["start"]),),
    "structure": (Between(0.1, 0.9, when=READ["structure"]),),
    "iterations": (Between(20, 200, log=True, when=READ["iterations"]),),
    "weights": (Ratios(2.0),),
    "average": (OneOf(when=({"solver": _PERMUTING},)),),
    "refit": (OneOf(("ridge", "none", *_ALONE), when=({"solver": _NOT_MIXING},)),),
    "targets": (OneOf(when=_RIDGE),),
    "refit_steps": (Between(20, 320, log=True, when=_RIDGE),),
    "augment": (OneOf(when=_RIDGE),),
    "renorm": (
        OneOf(("auto", *(name for name in METHODS if name != "reset")), when=({"refit": _NOT},)),
        OneOf(_RENEWING, when=({"refit": _ALONE},), label="refitted"),
    ),
    "augment_statistics": (OneOf(when=({"refit": (*_NOT, *_ALONE), "renorm": _RENEWING},)),),
}
