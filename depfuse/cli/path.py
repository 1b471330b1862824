"""`depfuse path`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.corridor import Request, run
from depfuse.cli.methods import parse_methods
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
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="METHOD,...",
            help="Draw the paths of several methods together, beside the naive one: weights, activations or mixture,"
            " each with another solver after a colon if need be, like weights,activations:sinkhorn. The child is the"
            " first one's.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the child at the recipe's weights (.safetensors)."),
    ] = None,
) -> None:
    """Fuse two parents at every share between them."""
    several = {} if methods is None else parse_methods(methods, recipe)
    recipe = next(iter(several.values()), recipe)
    request = Request(parents, data, recipe, options, fusion, out, points, context.obj, several)
    screen = Screen(options.quiet)
    with screen.working() as work:
        found = run(request, work)
    assert isinstance(found, PathReport)
    screen.show(path_table(found))
    screen.say(f"\n{barrier_sentence(found)}")
