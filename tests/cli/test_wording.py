"""The library names arguments; only the command line speaks of options, and it knows one for every argument."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

import depfuse
from depfuse.cli.app import COMMANDS, build_app
from depfuse.cli.console import complain
from depfuse.cli.wording import ARGUMENT, OPTIONS, in_options
from depfuse.recipe import Recipe
from depfuse.recipe.arrange import known_places

PACKAGE = Path(depfuse.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# Pages about the command line; one word of `torchrun`, by which the processes were started.
PAGES = ("recipe/reference.py", "report/page/study.py")
OF_OTHERS = ("--nproc-per-node",)
# Between backticks, but no argument: subcommands, named after another one, and a word in a warning of torch.
NO_ARGUMENTS = ("path", "match", "eval", "broadcast_buffers")


@cache
def strings() -> list[tuple[str, str]]:
    """File and text of every string below cli/ that is no docstring; a value that is put in reads X."""
    return list(_strings())


def _strings() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("cli/") or name in PAGES:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        inner = {id(part) for joined in nodes if isinstance(joined, ast.JoinedStr) for part in joined.values}
        inner |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                yield name, "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                yield name, node.value


def arguments() -> dict[str, str]:
    """Each argument between backticks in a message, with its file."""
    found = {match.group(): name for name, text in strings() for match in ARGUMENT.finditer(text)}
    return {text: name for text, name in found.items() if text.strip("`") not in NO_ARGUMENTS}


def all_options() -> set[str]:
    app = typer.main.get_command(build_app(list(COMMANDS)))
    commands = app.commands.values()  # type: ignore[attr-defined]
    return {flag for command in commands for parameter in command.params for flag in parameter.opts}


def test_no_string_below_the_command_line_has_an_option() -> None:
    spoken = [(name, option) for name, text in strings() for option in OPTION.findall(text) if option not in OF_OTHERS]
    assert spoken == []


def test_every_argument_in_a_message_has_an_option() -> None:
    found = arguments()
    assert "`align.allow_fixed=true`" in found, "no message was read"
    settings = known_places(Recipe)
    lost = {text: name for text, name in found.items() if text == in_options(text) and text.strip("`") not in settings}
    assert lost == {}


def test_the_table_has_no_row_that_no_message_needs_and_no_option_that_is_none() -> None:
    named = {part for text in arguments() for part in (text.strip("`"), ARGUMENT.fullmatch(text)["name"])}  # type: ignore[index]
    assert set(OPTIONS) <= named
    spoken = {option for words in OPTIONS.values() for option in OPTION.findall(words)}
    assert spoken <= all_options()


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("allow that with `align.allow_fixed=true`", "allow that with --allow-fixed"),
        ('give `device="cpu"`', "give --device cpu"),
        ("check `mean`, `std`", "check --mean, --std"),
        ("give fewer, as `calibration.images`", "give fewer, as --calibration"),
        ('`preset("soup")` with `renorm="reset"`', "--preset soup with --set renorm=reset"),
        ("leave out `merge.width_of`", "leave out --set merge.width_of"),
        ("`depfuse groups` lists them, and `eval` none", "`depfuse groups` lists them, and `eval` none"),
        ("a file named `labels", "a file named `labels"),
    ],
)
def test_arguments_are_written_as_options(sentence: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_options(sentence) == words
    assert in_options(words) == words
    complain(sentence)
    assert capsys.readouterr().err == f"depfuse: {words}\n"
