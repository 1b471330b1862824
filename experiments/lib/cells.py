"""Cells that are measured once, by several processes, into a CSV that can be resumed.

The smallest example has two cells:

    def measure(cell):
        return {"accuracy": ...}

    cells = Cells(keys=("step", "seed"), values=("accuracy",), measure=measure)
    table = cells.run(Path("cells.csv"), [{"step": "a", "seed": 0}, {"step": "b", "seed": 0}])

The second time nothing is measured: the rows are there. A cell that cannot be measured (`DepfuseError`) has a row that
says why; one that fails in another way has none, the others go on, and the run ends with `CellError`. Only the process
that runs the cells writes, and the file is whole at any time. One run at a time writes to a file.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from depfuse.errors import DataError, DepfuseError, RecipeError
from depfuse.io.atomic_files import check_writable, replacing
from experiments.lib.processes import CellError, cores, in_processes, machine

Cell = Mapping[str, Any]
Say = Callable[[str], None]
ALWAYS = ("machine", "threads", "refused")


@dataclass(frozen=True)
class Cells:
    """Cells, by the columns that tell them apart, and what is measured in each.

    Attributes
    ----------
    keys
        Columns that say which cell a row is of. They are text in the table.
    values
        Columns of numbers that `measure` gives; those that it leaves out are empty.
    measure
        Cell -> its values and texts; a function of a module, so that other processes find it.
    texts
        Further columns of text; `machine`, `threads` and `refused` are always there. What a cell itself says of one is
        taken over.
    named
        Columns of a cell that messages about it name; its keys where empty.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    measure: Callable[[Cell], Mapping[str, Any]]
    texts: tuple[str, ...] = ()
    named: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """All columns in their order."""
        return [*self.keys, *self.values, *self.texts, *ALWAYS]

    def read(self, path: Path) -> pd.DataFrame:
        """Read the rows of a file, none where there is no file.

        Raises
        ------
        DataError
            The file is not one that these cells wrote, or is damaged.
        """
        if not path.exists():
            return pd.DataFrame({name: pd.Series(dtype=float if name in self.values else str) for name in self.columns})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # a row that is too long
                table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        except pd.errors.EmptyDataError:
            table = pd.DataFrame()
        except (OSError, ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
            said = " ".join(str(error).split())
            raise DataError(f"{path} cannot be read ({said}): repair or delete it, or name another file") from None
        if lacking := [name for name in self.columns if name not in table]:
            raise DataError(f"{path} is no table of these cells, it has no column {lacking[0]}: name another file")
        for number, row in enumerate(table.to_dict("records"), start=2):
            if wrong := self._wrong(row):
                raise DataError(f"{path}, row {number}: {wrong}: repair or delete the row")
        return table[self.columns].assign(**{name: pd.to_numeric(table[name]) for name in self.values})

    def _wrong(self, row: Mapping[Any, str]) -> str:
        """Say what is wrong with a row as it was read; nothing where all is well."""
        if not row["machine"] or not row["threads"]:
            return "it is cut off"
        if empty := [name for name in self.keys if not row[name]]:
            return f"{empty[0]} is empty"
        for name in self.values:
            try:
                float(row[name] or 0.0)
            except ValueError:
                return f"{name} {row[name]!r} is no number"
        if not row["refused"] and not any(row[name] for name in self.values):
            return "it has neither figures nor a reason"
        return ""

    def key(self, cell: Cell) -> tuple[str, ...]:
        """Return what tells a cell from others."""
        return tuple(str(cell[name]) for name in self.keys)

    def rows_of(self, table: pd.DataFrame, cells: Sequence[Cell]) -> pd.DataFrame:
        """Select the rows of some cells."""
        wanted = {self.key(cell) for cell in cells}
        return table.loc[[key in wanted for key in self._keys_of(table)]]

    def _keys_of(self, table: pd.DataFrame) -> list[tuple[str, ...]]:
        return [tuple(key) for key in table[list(self.keys)].to_numpy().tolist()]

    def run(
        self,
        path: Path,
        cells: Sequence[Cell],
        *,
        processes: int = 1,
        threads: int | None = None,
        retry: bool = False,
        say: Say = print,
    ) -> pd.DataFrame:
        """Measure the cells that have no row, and return the table of all rows in the file.

        Parameters
        ----------
        path
            The CSV.
        cells
            What is wanted, in the order in which it is begun.
        processes, threads
            How many at a time, and torch's threads in each; together all cores where `threads` is left out.
        retry
            Measure once more what could not be measured.
        say
            Called with one line per cell.

        Raises
        ------
        DataError, CheckpointError
            The file is damaged, or cannot be written.
        CellError
            Some cells failed; the others have been measured.
        """
        if processes < 1:
            raise RecipeError(f"{processes} processes can measure nothing: give at least 1")
        threads = threads or max(1, cores() // processes)
        table = self.read(path)
        check_writable(path)
        known = set(self._keys_of(table[table["refused"] == ""] if retry else table))
        left = [cell for cell in cells if self.key(cell) not in known]
        failed: list[str] = []
        measured = in_processes(partial(_row, self.measure), left, processes=processes, threads=threads)
        for number, (cell, row) in enumerate(measured, start=1):
            named = ", ".join(str(cell[name]) for name in self.named or self.keys)
            if row is None:
                failed.append(named)
            else:
                others = [key != self.key(cell) for key in self._keys_of(table)]
                table = self._entered(table[others], cell, row)
                with replacing(path) as temporary:
                    table.to_csv(temporary, index=False)
            outcome = "failed" if row is None else row.get("refused") or f"{row['took']:.1f} s"
            say(f"{number}/{len(left)} {named}: {outcome}")
        if failed:
            raise CellError(f"{len(failed)} of {len(left)} cells failed, the first was {failed[0]}: see above")
        return table

    def _entered(self, table: pd.DataFrame, cell: Cell, row: Mapping[str, Any]) -> pd.DataFrame:
        texts = {name: str(row.get(name, cell.get(name, ""))) for name in (*self.texts, *ALWAYS)}
        values = {name: float(row.get(name, "nan")) for name in self.values}
        entered = pd.DataFrame([{**dict(zip(self.keys, self.key(cell), strict=True)), **values, **texts}])
        return entered if table.empty else pd.concat([table, entered], ignore_index=True)


def _row(measure: Callable[[Cell], Mapping[str, Any]], cell: Cell) -> Mapping[str, Any] | None:
    started = time.perf_counter()
    try:
        found = dict(measure(cell))
    except DepfuseError as error:
        found = {"refused": str(error)}
    except Exception:  # the other cells go on
        traceback.print_exc()
        return None
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "took": time.perf_counter() - started,
        **found,
    }
