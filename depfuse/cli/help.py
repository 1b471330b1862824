"""Help: `--help` lists the options that people need, `--help-all` all of them.

An option that few need says so itself, `typer.Option(..., rich_help_panel=FURTHER)`; where one command needs less of a
description of options that several share, it takes it as `Annotated[Description, Further("field", ...)]`.
"""

from __future__ import annotations

import copy
import inspect
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

FURTHER = "Further options"
SHOWN = 15  # options that a help may have before it leaves any to --help-all
_ALL = "depfuse.help_all"


class Further:
    """Fields of a description whose options a command lists by `--help-all` alone."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields


class Command(TyperCommand):
    """A subcommand whose help leaves further options to `--help-all`, where it has one."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options that the help lists."""
        brief = copy.copy(self)
        if any("--help-all" in parameter.opts for parameter in self.params) and _ALL not in ctx.meta:
            brief.params = [own for own in self.params if getattr(own, "rich_help_panel", None) != FURTHER]
        super(Command, brief).format_options(ctx, formatter)


def marked(annotation: Any) -> Any:
    """Return the annotation of a parameter with its option marked as one that few need."""
    kind, option = get_args(annotation)
    option = copy.copy(option)
    option.rich_help_panel = FURTHER
    return Annotated[kind, option]


def with_help_all(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Add `--help-all` to the parameters of a command that has more options than a help shows."""
    options = [own for own in parameters if any(_is_option(part) for part in get_args(own.annotation))]
    return parameters if len(options) <= SHOWN else [*parameters, _HELP_ALL]


def _is_option(part: Any) -> bool:
    return isinstance(part, type(typer.Option()))


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[_ALL] = True
        print(context.get_help())
        raise typer.Exit


_HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            "--help-all",
            is_eager=True,
            callback=_show_all,
            help="Show every option, and exit.",
        ),
    ],
)
