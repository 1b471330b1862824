"""Benchmarks and proofs that keep rows: cells that are measured once, and what is shown of them.

The smallest example measures networks by their names:

    MEASUREMENT = Measurement("speed", __doc__, wanted, scheme, table_of, add_options)

`wanted` makes the cells of a command line, `scheme` says how they are measured and kept, `table_of` makes a table of
rows, and `add_options` declares what the command line has besides the options of all experiments.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.lib import places
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import check_counts, check_plot, common_options, exit_code, rows_of


def _nothing(_: argparse.ArgumentParser) -> None:
    """Declare no further options."""


@dataclass(frozen=True)
class Measurement:
    """What is measured, and what is shown of it.

    Attributes
    ----------
    name
        Of its module, its rows and its page.
    described
        Its module's docstring.
    wanted
        Options -> the cells that are asked for; raises `RecipeError` where the request is wrong.
    scheme
        Options -> how rows are measured and kept.
    show
        (rows, options) -> Markdown.
    add_options
        Declares further options of the command line.
    draw
        (rows, options, file): the same as a picture, where there is one.
    judge
        Called with the rows once they are shown; raises `CellError` where they are not as they have to be.
    shown_as
        Name of its page, its own where empty.
    """

    name: str
    described: str | None
    wanted: Callable[[argparse.Namespace], Sequence[Cell]]
    scheme: Callable[[argparse.Namespace], Cells]
    show: Callable[[pd.DataFrame, argparse.Namespace], str]
    add_options: Callable[[argparse.ArgumentParser], object] = _nothing
    draw: Callable[[pd.DataFrame, argparse.Namespace, Path], None] | None = None
    judge: Callable[[pd.DataFrame], None] | None = None
    shown_as: str = ""

    @property
    def csv(self) -> Path:
        """Where its rows are kept."""
        return places.MEASUREMENTS / f"{self.name}.csv"

    def parser(self) -> argparse.ArgumentParser:
        """The options."""
        options = common_options(self.described, self.csv, plot=self.draw is not None)
        self.add_options(options)
        return options

    def run(self, options: argparse.Namespace) -> None:
        """Measure and show what was asked for."""
        plot: Path | None = getattr(options, "plot", None)
        check_plot(plot)
        check_counts(options)
        cells = self.wanted(options)
        if options.list:
            print("\n".join(", ".join(self.scheme(options).key(cell)) for cell in cells))
            return
        rows = self.rows(cells, options)
        print(self.show(rows, options))
        if self.draw is not None and plot is not None:
            self.draw(rows, options, plot)
        if self.judge is not None:
            self.judge(rows)

    def rows(self, cells: Sequence[Cell], options: argparse.Namespace) -> pd.DataFrame:
        """Measure cells that have no row yet, or read them."""
        return rows_of(self.scheme(options), cells, options)

    def page(self, csv: Path) -> str:
        """Make the tables of all stored rows."""
        options = self.parser().parse_args([])
        return self.show(self.scheme(options).read(csv), options)

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """0 where all is well, 1 where cells failed or are not as they have to be, 2 where the request is wrong."""
        return exit_code(self.run, self.parser().parse_args(arguments))
