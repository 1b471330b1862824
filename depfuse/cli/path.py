"""`depfuse path`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.help import Further
from depfuse.cli.importing import importing
from depfuse.cli.methods import parse_methods
from depfuse.cli.options import Checkpoints, DataOptions, FusionOptions, RecipeOptions, RunOptions
from depfuse.cli.points import POINTS_OF_A_PLOT, REFITTED_POINTS
from depfuse.cli.request import Request
from depfuse.cli.spread import spread
from depfuse.cli.wording import in_options
from depfuse.report import PathReport, barrier_sentence, decisions
from depfuse.report.tables import path_table


@spread
def path(
    context: typer.Context,
    parents: Checkpoints,
    data: DataOptions,
    settings: Annotated[RecipeOptions, Further("distil", "weights")],
    options: RunOptions,
    fusion: Annotated[FusionOptions, Further("classes")],
    points: Annotated[
        int | None,
        typer.Option(
            "--points",
            "--steps",
            help="Number of networks on the path, both parents included. Default: "
            f"{POINTS_OF_A_PLOT}, or {REFITTED_POINTS} where each is refitted.",
        ),
    ] = None,
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
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            help="Show what becomes of one image along the path, for networks that give pictures (.png): a row each for"
            " the average, the aligned and the refitted networks, a column for each point, and below each how far it"
            " is from the mean of the parents' pictures.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the child at the recipe's weights (.safetensors)."),
    ] = None,
) -> None:
    """Fuse two parents at every share between them."""
    base = settings.recipe(labelled=fusion.labels_from is not None)
    several = {} if methods is None else parse_methods(methods, base)
    first = next(iter(several.values()), base)
    request = Request(
        parents,
        data,
        first,
        options,
        fusion,
        out,
        POINTS_OF_A_PLOT if points is None else points,
        context.obj,
        several,
        REFITTED_POINTS if points is None else points,
        picture=picture,
        settings=settings.files,
    )
    request.check()
    # What follows needs torch, for which no mistake above has to wait.
    with importing():
        from depfuse.cli.run_fusion import run

    screen = Screen(options.quiet)
    with screen.working() as work:
        found = run(request, work)
    assert isinstance(found, PathReport)
    screen.show(path_table(found))
    for sentence in decisions(found):
        screen.say(f"\n{in_options(sentence)}")
    screen.say(f"\n{barrier_sentence(found)}")
