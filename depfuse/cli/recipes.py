"""`depfuse recipes`."""

from __future__ import annotations

from depfuse.cli.console import Screen
from depfuse.cli.options import RunOptions, spread
from depfuse.recipes import names, published
from depfuse.report.tables import recipes_table


@spread
def recipes(options: RunOptions) -> None:
    """List the published methods that `--recipe` takes."""
    Screen(options.quiet).show(recipes_table([published(name) for name in names()]))
