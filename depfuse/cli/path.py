"""`depfuse path`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.corridor import Request, run
from depfuse.cli.options import Checkpoints, DataOptions, FusionOptions, RunOptions, spread
from depfuse.recipe import Recipe
from depfuse.report import PathReport, barrier_sentence
from depfuse.report.tables import path_table


@spread
def path(
    context: typer.Context,
    parents: Checkpoints,
    data: DataOptions,
    recipe: Recipe,
    options: RunOptions,
    fusion: FusionOptions,
    points: Annotated[
        int, typer.Option("--points", help="Number of networks on the path, both parents included.")
    ] = 11,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the child at the recipe's weights (.safetensors)."),
    ] = None,
) -> None:
    """Fuse two parents at every share between them."""
    request = Request(parents, data, recipe, options, fusion, out, points, context.obj)
    screen = Screen(options.quiet)
    with screen.working() as work:
        found = run(request, work)
    assert isinstance(found, PathReport)
    screen.show(path_table(found))
    screen.say(f"\n{barrier_sentence(found)}")
