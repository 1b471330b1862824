"""`depfuse recipes`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from depfuse.cli.console import Screen
from depfuse.recipe.presets import Preset, names, preset


def recipes() -> None:
    """List the presets and the published methods that `--preset` takes."""
    presets = sorted((preset(name) for name in names()), key=lambda own: (bool(own.paper), own.name))
    Screen(quiet=False).show(recipes_table(presets))


def recipes_table(recipes: Sequence[Preset]) -> Table:
    """Tabulate presets with what they cost, and published methods with their papers and what is otherwise here."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, wraps in (("name", False), ("title", True), ("cost or paper", True), ("otherwise than there", True)):
        table.add_column(name, overflow="fold", no_wrap=not wraps)
    for row in recipes:
        table.add_row(row.name, row.title, row.cost or row.paper, row.differs)
    return table
