"""`--help` lists the options that people need, `--help-all` and completion all of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer

from depfuse.cli import main
from depfuse.cli.app import COMMANDS, build_app
from depfuse.cli.help import SHOWN
from depfuse.cli.old_flags import NAMES, STILL_OPTIONS

LONG = ("fuse", "path", "match", "tune", "train")
# What the help of `fuse` is for; nothing of it moves to --help-all.
NEEDED = {
    *("--data", "--out", "--arch", "--weights", "--calibration", "--classes", "--preset", "--set", "--distil"),
    *("--device", "--seed", "--report", "--plot", "--quiet"),
}
FEW_NEED = {
    *("--data-root", "--mean", "--std", "--width", "--child-arch", "--trust", "--out-parent", "--allow-fixed"),
    "--no-fixed",
}


def command(name: str) -> Any:
    app: Any = typer.main.get_command(build_app([name]))
    return app.commands[name]


def declared(name: str) -> set[str]:
    return {flag for own in command(name).params for flag in (*own.opts, *own.secondary_opts) if flag.startswith("--")}


def listed(text: str) -> list[set[str]]:
    """The flags of each option in a help."""
    options = text.partition("\nOptions:")[2].partition("\n  Example:")[0]
    lines = [line.strip() for line in options.splitlines() if re.match(r"  -", line)]
    return [set(re.findall(r"--[a-z-]+", re.split(r"  +", line)[0])) for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_at_most_15_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    found = [flags for flags in listed(capsys.readouterr().out) if "--help" not in flags]
    assert len(found) <= SHOWN == 15
    assert ({"--help-all"} in found) == (name in LONG)


def test_help_of_fuse_lists_what_people_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", "--help"]) == 0
    text = capsys.readouterr().out
    assert set.union(*listed(text)) == {*NEEDED, "--recipe", "--help-all", "--help"}
    assert text.partition("\n  Example:")[0].rstrip().splitlines()[-2].split()[0] == "--help-all"


@pytest.mark.parametrize("name", LONG)
def test_help_all_lists_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help-all"]) == 0
    found = set.union(*listed(capsys.readouterr().out))
    assert found == declared(name) | {"--help"}
    assert (found >= FEW_NEED) == (name in ("fuse", "path"))
    old = {f"--{flag.replace('_', '-')}" for flag in NAMES if flag not in STILL_OPTIONS} - declared("train")
    assert not found & old


@pytest.mark.parametrize("name", COMMANDS)
def test_completion_knows_every_option(name: str) -> None:
    own = command(name)
    context = typer.Context(own, info_name=name, resilient_parsing=True)
    completed = {item.value for item in own.shell_complete(context, "--")}
    assert completed == declared(name) | {"--help"}


@pytest.mark.parametrize("words", [["--help-all"], ["a.safetensors", "--data", "digits", "--help-all"]])
def test_help_all_asks_for_nothing_else(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", *words]) == 0
    assert "--out-parent" in capsys.readouterr().out
