"""`depfuse demo`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.fuse import fuse_and_show
from depfuse.cli.options import DataOptions, FusionOptions, QuietOption, RecipeOptions, RunOptions
from depfuse.cli.request import Request
from depfuse.errors import CheckpointError
from depfuse.io.atomic_files import check_writable, replacing
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
    with ExitStack() as stack:
        if out is not None:
            if out.is_file():
                raise CheckpointError(f"--out {out} is a file: give a folder")
            parents = stack.enter_context(_copied(PARENTS, out))
            child, report = out / "child.safetensors", out / "report.json"
        fusion = FusionOptions(report=report)
        data = DataOptions(data="digits")
        request = Request(parents, data, settings.recipe(), options, fusion, child, None, context.obj)
        request.check()
        screen = fuse_and_show(request, settings)
    if out is None:
        screen.say("\nNothing was written. `depfuse demo --out FOLDER` writes both parents, the child and a report.")
    else:
        screen.say(
            f"\nParents, child and report are in {out}. The same, in your words:\n"
            f"    depfuse fuse {parents[0]} {parents[1]} --data digits --out {child}"
        )


@contextmanager
def _copied(files: Sequence[Path], folder: Path) -> Iterator[list[Path]]:
    """Copy files into a folder; what was not there before is taken away again where the block does not succeed."""
    places = [folder / own.name for own in files]
    for place in places:
        check_writable(place)
    with ExitStack() as undone:
        for own, place in zip(files, places, strict=True):
            if not place.exists():
                undone.callback(place.unlink, missing_ok=True)
            with replacing(place) as temporary:
                shutil.copyfile(own, temporary)
        yield places
        undone.pop_all()
