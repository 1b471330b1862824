"""Say what a fusion shall do: plain frozen data."""

from depfuse.recipe.recipe import (
    MIXING,
    SOFT,
    Criterion,
    Recipe,
)

__all__ = [
    "MIXING",
    "SOFT",
    "Criterion",
    "Recipe",
]
