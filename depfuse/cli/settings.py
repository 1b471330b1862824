"""`depfuse settings`."""

from __future__ import annotations

from typing import Annotated

import typer

from depfuse.recipe.reference import lines, markdown


def settings(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A setting or a section, such as align.solver. Default: all.")
    ] = "",
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Write the page docs/settings.md.")] = False,
) -> None:
    """Print settings with their values, defaults and meanings."""
    if as_markdown:
        print(markdown(), end="")
        return
    for line in lines(name):
        where = f" ({line.where})" if line.where else ""
        print(f"{line.path}{where} = {line.default}  [{line.values}]\n    {line.text}")
