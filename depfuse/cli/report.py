"""`depfuse report`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.options import QuietOption
from depfuse.errors import DepfuseWarning, ReportError
from depfuse.io.output_files import check_outputs
from depfuse.report.page import find_runs


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", help="The folder that holds the reports and studies, at any depth below it."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the page is written. Default: report.html in the folder."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Show all reports and studies below a folder on one page."""
    page = folder / "report.html" if out is None else out
    if page.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"--out {page}: the page's name must end in .html")
    runs = find_runs(folder)
    check_outputs({"--out": page})
    # What follows needs libraries that draw, for which no mistake above has to wait.
    from depfuse.report.page import write_page
    from depfuse.report.page.best import best_sentences

    write_page(runs, page)
    for broken in runs.broken:
        warnings.warn(f"left out: {broken.reason}", DepfuseWarning, stacklevel=2)
    screen = Screen(quiet)
    for sentence in best_sentences(runs.runs):
        screen.say(sentence)
    screen.say(f"{page} shows {len(runs.runs)} {'run' if len(runs.runs) == 1 else 'runs'}.")
