"""`depfuse inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.importing import importing
from depfuse.io.folders import weight_files
from depfuse.io.headers import kind_of


def inspect(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file, a folder or an index of parts: .safetensors, .pt, ..."),
    ],
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="NAME", help="List every tensor under this key. Default: the keys alone."),
    ] = None,
) -> None:
    """Show what a file holds."""
    for own in weight_files(file):
        kind_of(own)
    # What follows needs torch, for which no mistake above has to wait.
    with importing():
        from depfuse.io.contents import read_contents
        from depfuse.io.weights import choose_place, find_weights
        from depfuse.report.inspection import heading, other_entries, recognised_line, sets_table, tensors_table

    screen = Screen(quiet=False)
    contents = read_contents(file)
    top = find_weights(file, contents.loaded, contents.layout)
    place = choose_place(file, top, key)
    if key is not None:
        screen.show(tensors_table(place))
        return
    for line in heading(file, contents):
        screen.say(line)
    if contents.card is None and (line_of_network := recognised_line(top)) is not None:
        screen.say(line_of_network)
    screen.say("")
    if top.parts:
        screen.show(sets_table(top))
    else:
        screen.say("It holds no tensors.")
    if others := other_entries(contents.loaded, top):
        screen.say("\nBeside them:")
        for line in others:
            screen.say(f"  {line}")
