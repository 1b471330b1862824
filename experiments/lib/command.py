"""What the commands of all studies have in common: their options, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from depfuse.errors import DepfuseError, RecipeError
from depfuse.io.atomic_files import check_writable
from depfuse.report.plot_kind import plot_kind
from experiments.lib.cells import Cell, Cells
from experiments.lib.processes import CellError


def common_options(described: str | None, csv: Path, *, plot: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of every study, --plot where it is drawn; numbers are None where they are not given."""
    options = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--csv", type=Path, default=csv, metavar="FILE")
    if plot:
        options.add_argument("--plot", type=Path, metavar="FILE")
    options.add_argument("--processes", type=int, metavar="N", help="cells at a time; 1")
    options.add_argument("--threads", type=int, metavar="N", help="of each process; together all cores if left out")
    options.add_argument("--retry", action="store_true", help="measure once more what was not possible")
    options.add_argument("--tables-only", action="store_true", help="measure nothing")
    options.add_argument("--list", action="store_true", help="name what can be measured, and measure nothing")
    return options


def numbers(option: str, text: str, least: int) -> list[int]:
    """Whole numbers from a text with commas; `RecipeError` where it is none."""
    parts = text.split(",")
    found = [int(part) for part in parts if part.strip().isdecimal()]
    if len(found) < len(parts) or len(set(found)) < len(found) or min(found) < least:
        raise RecipeError(f"{option} {text}: give whole numbers of at least {least}, each once, as in 500,2000")
    return found


def check_counts(options: argparse.Namespace, **least: int) -> None:
    """Raise `RecipeError` where processes, threads or another number is given and too small."""
    for name, value in {"processes": 1, "threads": 1, **least}.items():
        given = getattr(options, name, None)
        if given is not None and given < value:
            raise RecipeError(f"--{name.replace('_', '-')} {given} must be at least {value}")


def check_plot(path: Path | None) -> None:
    """Raise where a plot is wanted that cannot be written."""
    if path is not None:
        plot_kind(path)
        check_writable(path)


def say(line: str) -> None:
    """One line beside the tables."""
    print(line, file=sys.stderr, flush=True)


def rows_of(scheme: Cells, cells: Sequence[Cell], options: argparse.Namespace) -> pd.DataFrame:
    """The rows of some cells: once all are measured, or with `--tables-only` those that are in the file."""
    if options.tables_only:
        if not options.csv.exists():
            raise RecipeError(f"there is no file {options.csv} to make tables of: leave out --tables-only")
        table = scheme.rows_of(scheme.read(options.csv), cells)
        if table.empty:
            raise RecipeError(f"{options.csv} has no row of these cells: leave out --tables-only to measure them")
        return table
    return measured(scheme, cells, options)


def measured(scheme: Cells, cells: Sequence[Cell], options: argparse.Namespace) -> pd.DataFrame:
    """Measure what has no row yet, and return the rows of these cells."""
    table = scheme.run(
        options.csv, cells, processes=options.processes or 1, threads=options.threads, retry=options.retry, say=say
    )
    return scheme.rows_of(table, cells)


def given_files(pairs: Sequence[str]) -> dict[str, str]:
    """Read `--npz DATA=FILE`, given as often as one likes."""
    return dict(pair.partition("=")[::2] for pair in pairs)


def exit_code(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """0 where all is well, 1 where cells failed, 2 where the request or the data are wrong."""
    try:
        run(options)
    except DepfuseError as error:
        say(str(error))
        return 2
    except CellError as error:
        say(str(error))
        return 1
    return 0
