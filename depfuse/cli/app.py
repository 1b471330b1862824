"""The `depfuse` command: its subcommands, and what becomes of errors."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from depfuse.cli.console import InterruptionError, complain, warnings_in_one_line
from depfuse.cli.help import Command
from depfuse.cli.importing import importing
from depfuse.cli.old_flags import in_settings
from depfuse.errors import DepfuseError, DepfuseWarning

# Typer does not export it, and some of its versions bring their own copy of click's.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class _Command:
    """A subcommand before it is imported: `module:function`, its help and an example of its use."""

    place: str
    help: str
    example: str


COMMANDS = {
    "demo": _Command(
        "depfuse.cli.demo:demo",
        "Fuse two small networks that come with depfuse, to see what a fusion says.\n\n"
        "It needs no files and no network connection, and takes under half a minute.",
        "depfuse demo --out first-fusion",
    ),
    "groups": _Command(
        "depfuse.cli.groups:groups",
        "Find, prove and print the channel groups of a network.\n\n"
        "The exit code is 1 when something could not be followed or proved (unless --allow-fixed), and 0 when"
        " all that is fixed has to be, such as what touches the network's input or output.",
        "depfuse groups torchvision:resnet18 --plot groups.png",
    ),
    "train": _Command(
        "depfuse.cli.train:train",
        "Train a network, a parent to be fused.\n\n"
        "What is not given suits the images: colour ones are mirrored and shifted, grey ones only shifted."
        " A training that was cut off goes on where it stood when the same command is given again.",
        "depfuse train digits_resnet --data digits --labels 0-4:0.9,5-9:0.1 --out first.safetensors",
    ),
    "fuse": _Command(
        "depfuse.cli.fuse:fuse",
        "Fuse trained networks of one architecture into one.\n\n"
        "Parents, their logit ensemble, their plain average and the child are evaluated on the test images,"
        " and a closing sentence says which of them to keep.",
        "depfuse fuse first.safetensors second.safetensors --data digits --out child.safetensors",
    ),
    "ask": _Command(
        "depfuse.cli.ask:ask",
        "Choose the unlabelled images whose labels are most in doubt.\n\n"
        "They are written into a folder with a table, labels.csv, in which you fill in the column `label`; `depfuse"
        " fuse --labels-from` reads it. The parents together know little of them, and they differ from each other.",
        "depfuse ask first.safetensors second.safetensors --data photos --number 100 --out to-label",
    ),
    "tune": _Command(
        "depfuse.cli.tune:tune",
        "Search for the recipe that gives the best child.\n\n"
        "Settings that are given are kept, all others of a method are searched, with Optuna. Children are judged on"
        " training images that they were not calibrated on, and no test image is looked at. A search goes on where it"
        " stood with --resume, by several workers if need be. It ends with plots, and with a page, report.html, that"
        " shows all trials.",
        "depfuse tune first.safetensors second.safetensors --data digits --set refit=none --trials 50",
    ),
    "recipes": _Command(
        "depfuse.cli.recipes:recipes",
        "List the presets and the published methods that come with depfuse.\n\n"
        "Each is a few settings over depfuse's own parts, for `depfuse fuse --preset NAME`.",
        "depfuse recipes",
    ),
    "settings": _Command(
        "depfuse.cli.settings:settings",
        "Print the reference of all settings, or of those of one section.\n\n"
        "`depfuse fuse --set SETTING=VALUE` changes one.",
        "depfuse settings align.solver",
    ),
    "inspect": _Command(
        "depfuse.cli.inspect:inspect",
        "Show what a file with weights holds.\n\n"
        "Its sets of tensors by key, for --key of other commands, its card, and what else is in it. Nothing in the file"
        " is run, and no architecture is needed.",
        "depfuse inspect best.ckpt",
    ),
    "eval": _Command(
        "depfuse.cli.evaluate:evaluate",
        "Evaluate networks on the test images.\n\n"
        "Accuracy, mean cross-entropy in nats, and expected calibration error.",
        "depfuse eval first.safetensors child.safetensors --data digits",
    ),
    "match": _Command(
        "depfuse.cli.match:match",
        "Match the channels of parents, and show the matching.\n\n"
        "For each group the cost before and after, and for each depth how the matched channels correlate"
        " on the calibration images. No test image is looked at.",
        "depfuse match first.safetensors second.safetensors --data digits --plot matching.png",
    ),
    "path": _Command(
        "depfuse.cli.path:path",
        "Measure the barrier on the way from one parent to another.\n\n"
        "The parents are merged at every share between them, matched and naively.",
        "depfuse path first.safetensors second.safetensors --data digits --plot path.png",
    ),
    "report": _Command(
        "depfuse.cli.report:report",
        "Show all reports and studies below a folder on one HTML page.\n\n"
        "The reports are what --report of `depfuse fuse`, `path`, `match` and `eval` wrote, the studies what `depfuse"
        " tune` did. The page needs no network: all of it is in the one file.",
        "depfuse report runs --out runs.html",
    ),
}


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """Build the command line for these arguments.

    Only a subcommand that they name is imported, so that help and mistakes do not wait for torch.
    """
    app = typer.Typer(
        name="depfuse",
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_depfuse)
    for name, command in COMMANDS.items():
        function = _load(command.place) if name in arguments else _not_asked_for
        app.command(name, cls=Command, help=command.help, epilog=f"Example: {command.example}")(function)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done; 1: `depfuse groups` could not follow or prove everything; 2: the input or the way it was asked for is
    wrong, said in one sentence on standard error, and nothing was written; 130: interrupted. Any other
    exception is a mistake in the program and keeps its traceback. Of several processes that `torchrun` started, the
    first one runs it, and the others help.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Anything else need not wait for torch.
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        from depfuse.distributed.team import launch

        return launch(lambda: _run(words))
    return _run(words)


def _run(words: list[str]) -> int:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed, as by `>&-`: nobody wants to read it
            setattr(sys, name, _nowhere())
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have bytes that are no Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings_in_one_line():
        try:
            with importing():
                app = build_app(words)
            status = typer.main.get_command(app).main(
                args=in_settings(words) or ["--help"],
                prog_name="depfuse",
                standalone_mode=False,
                obj=["depfuse", *words],
            )
        except (DepfuseError, DepfuseWarning) as error:  # a warning, where the user's filter makes it an error
            complain(str(error))
            return 2
        except _UsageError as error:
            complain(_usage(error))
            return 2
        except InterruptionError as interruption:
            complain(str(interruption))
            return 130
        except (KeyboardInterrupt, typer.Abort):
            status = 130
        except OSError as error:
            if error.filename is not None and error.errno in _UNREACHABLE:
                complain(f"{error.filename}: {error.strerror}")
                return 2
            if error.filename is not None or error.errno not in _UNWRITABLE:
                raise
            sys.stdout = _nowhere()  # at its end Python would try again
            complain(f"the results cannot be printed ({error.strerror}): give another place")
            return 2
        if status == 130:  # newer versions of Typer turn the interruption into this code themselves
            complain("interrupted")
    return status if isinstance(status, int) else 0


def _nowhere() -> io.TextIOBase:
    return Path(os.devnull).open("w", encoding="utf-8")


_UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EBADF)
_UNREACHABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)  # of a name on the command line, wherever it is read


def _load(place: str) -> Callable[..., None]:
    module, _, function = place.partition(":")
    loaded: Callable[..., None] = getattr(importlib.import_module(module), function)
    return loaded


def _not_asked_for() -> None:
    """Stand in for a subcommand that the arguments do not name."""


def _usage(error: Any) -> str:
    hint = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
    return f"{error.format_message().rstrip('.')}{hint}"


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"depfuse {version('depfuse')}")
        except PackageNotFoundError:
            print("depfuse, not installed")
        raise typer.Exit


def _depfuse(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Fuse independently trained networks of one architecture into one network."""
