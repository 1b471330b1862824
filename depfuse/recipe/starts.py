"""Settings of the start of iterative solvers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, SerializeAsAny

from depfuse.recipe.criteria import Distance, TapPosition
from depfuse.recipe.fields import Choice, OneOf, Registry, setting


class Start(Choice):
    """Start of an iterative solver."""


class NoStart(Start):
    """Uniform candidates, or what the solver takes otherwise."""

    name: Literal["none"] = "none"


class ActivationsStart(Start):
    """The assignment by activations; with the distance of the criterion where that compares activations itself."""

    name: Literal["activations"] = "activations"
    distance: Distance = setting("best", "as that of criterion activations; best is cosine here", search=OneOf())
    taps: TapPosition = setting("after", "as those of criterion activations", search=OneOf())


STARTS = Registry(NoStart, ActivationsStart)
StartChoice = Annotated[SerializeAsAny[Start], BeforeValidator(STARTS)]
