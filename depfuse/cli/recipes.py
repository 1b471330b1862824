"""`depfuse recipes`."""

from __future__ import annotations

from depfuse.cli.console import Screen
from depfuse.recipe.presets import names, published
from depfuse.report.tables import recipes_table


def recipes() -> None:
    """List the published methods that `--recipe` takes."""
    Screen(quiet=False).show(recipes_table([published(name) for name in names()]))
