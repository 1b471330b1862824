"""`depfuse demo`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.fuse import fuse_and_show
from depfuse.cli.options import DataOptions, FusionOptions, QuietOption, RecipeOptions, RunOptions
from depfuse.cli.request import Request
from depfuse.errors import CheckpointError
from depfuse.io.atomic_files import check_writable
from depfuse.models.demo import PARENTS


def demo(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where parents, child and report go; nothing is kept without it."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Fuse the two small networks that come with depfuse, on the digits that do."""
    settings, options = RecipeOptions(), RunOptions(quiet=quiet)
    parents, child, report = list(PARENTS), None, None
    if out is not None:
        if out.is_file():
            raise CheckpointError(f"--out {out} is a file: give a folder")
        parents = [out / own.name for own in PARENTS]
        child, report = out / "child.safetensors", out / "report.json"
        for own, place in zip(PARENTS, parents, strict=True):
            check_writable(place)
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own, place)
    fusion = FusionOptions(report=report)
    request = Request(parents, DataOptions(data="digits"), settings.recipe(), options, fusion, child, None, context.obj)
    request.check()
    screen = fuse_and_show(request, settings)
    if out is None:
        screen.say("\nNothing was written. `depfuse demo --out FOLDER` writes both parents, the child and a report.")
    else:
        screen.say(
            f"\nParents, child and report are in {out}. The same, in your words:\n"
            f"    depfuse fuse {parents[0]} {parents[1]} --data digits --out {child}"
        )
