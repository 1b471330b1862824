"""`depfuse fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.importing import importing
from depfuse.cli.options import Checkpoints, DataOptions, FusionOptions, RecipeOptions, RunOptions
from depfuse.cli.points import POINTS_OF_A_PLOT
from depfuse.cli.request import Request
from depfuse.cli.run_file import run_file
from depfuse.cli.spread import spread
from depfuse.cli.wording import in_options
from depfuse.report import decisions, loading_lines, sentence_of_errors
from depfuse.report.tables import family_table, fusion_table, shares_table, short_names


@spread
def fuse(
    context: typer.Context,
    parents: Checkpoints,
    data: DataOptions,
    settings: RecipeOptions,
    options: RunOptions,
    fusion: FusionOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE|FOLDER",
            help="Where the child is written: a .safetensors file, or a folder with configuration and model card, as"
            " transformers and timm load it.  [default: child.safetensors]",
        ),
    ] = None,
) -> None:
    """Fuse parents, compare everything on the test images, and write what was asked for."""
    if (file := run_file(parents)) is not None:
        settings = settings.of_file(file)
        parents, data, fusion, out = file.completed(data, fusion, out)
    chosen = settings.recipe(labelled=fusion.labels_from is not None)
    out = out or Path("child.safetensors")
    request = Request(
        parents,
        data,
        chosen,
        options,
        fusion,
        out,
        None if fusion.plot is None or chosen.goal.name == "best" else POINTS_OF_A_PLOT,
        context.obj,
        path_refitted=False,
        settings=settings.files,
    )
    request.check()
    fuse_and_show(request, settings)


def fuse_and_show(request: Request, settings: RecipeOptions) -> Screen:
    """Run a fusion that was checked, and print what it found."""
    # What follows needs torch, for which no mistake in the request has to wait.
    with importing():
        from depfuse.cli.run_fusion import run

    options, fusion = request.options, request.fusion
    screen = Screen(options.quiet)
    with screen.working() as work:
        found = run(request, work)
    screen.show(fusion_table(found))
    if found.shares is not None and found.shares.parts:
        screen.say("")
        screen.show(shares_table(found.shares, short_names(found.parents)))
    if found.family:
        screen.say("")
        screen.show(family_table(found))
    for sentence in decisions(found):
        screen.say(f"\n{in_options(sentence)}")
    if fusion.test is not None and (errors := sentence_of_errors(found)):
        screen.say(f"\n{errors}")
    screen.say(f"\n{settings.named(request.recipe)}")
    for line in loading_lines(found):
        screen.say(line)
    if fusion.out_parent is not None and found.trained_parent is not None:
        screen.say(f"The trained parent is in {fusion.out_parent}.")
    screen.say(f"\n{found.verdict}")
    return screen
