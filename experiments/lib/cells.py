"""The scheme of an ablation: cells that are measured once, by several processes, into a CSV that can be resumed.

A study is a list of cells and a function that measures one. The smallest example has two cells:

    def measure(cell):
        return {"accuracy": ...}

    study = Study(keys=("step", "seed"), values=("accuracy",), measure=measure)
    table = study.run(Path("study.csv"), [{"step": "a", "seed": 0}, {"step": "b", "seed": 0}])

The second time nothing is measured: the rows are there. A cell that cannot be measured (`DepfuseError`) has a row that
says why; one that fails in another way has none, the others go on, and the run ends with `StudyError`. Only the process
that runs the study writes, and the file is whole at any time. One run at a time writes to a file.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from depfuse.errors import DataError, DepfuseError, RecipeError
from depfuse.io.atomic_files import check_writable, replacing

Cell = Mapping[str, Any]
Say = Callable[[str], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


class StudyError(Exception):
    """Cells that failed, or a process that died; the rows of all others are in the file."""


@dataclass(frozen=True)
class Study:
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
        Further columns of text. `machine`, `threads` and `refused` are always there.
    unsaid
        Keys that no message about a cell names.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    measure: Callable[[Cell], Mapping[str, Any]]
    texts: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """All columns in their order."""
        return [*self.keys, *self.values, *self.texts, "machine", "threads", "refused"]

    def read(self, path: Path) -> pd.DataFrame:
        """The rows of a file, none where there is no file.

        Raises
        ------
        DataError
            The file is not one that this study wrote, or is damaged.
        """
        if not path.exists():
            return pd.DataFrame({name: pd.Series(dtype=float if name in self.values else str) for name in self.columns})
        try:
            with path.open(newline="", encoding="utf-8") as file:
                header, *lines = list(csv.reader(file, strict=True)) or [[]]
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{path} cannot be read ({error}): repair or delete it, or name another file") from None
        if lacking := [name for name in self.columns if name not in header]:
            raise DataError(f"{path} is no table of this study, it has no column {lacking[0]}: name another file")
        for number, line in enumerate(lines, start=2):
            wrong = self._wrong(dict(zip(header, line, strict=True))) if len(line) == len(header) else "it is cut off"
            if wrong:
                raise DataError(f"{path}, row {number}: {wrong}: repair or delete the row")
        table = pd.DataFrame(lines, columns=header, dtype=str)[self.columns]
        return table.assign(**{name: pd.to_numeric(table[name]) for name in self.values})

    def _wrong(self, row: Mapping[str, str]) -> str:
        """What is wrong with a row as it was read; nothing where all is well."""
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
        """What tells a cell from others."""
        return tuple(str(cell[name]) for name in self.keys)

    def rows_of(self, table: pd.DataFrame, cells: Sequence[Cell]) -> pd.DataFrame:
        """The rows of some cells only."""
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
        StudyError
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
            named = ", ".join(str(cell[name]) for name in self.keys if name not in self.unsaid)
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
            raise StudyError(f"{len(failed)} of {len(left)} cells failed, the first was {failed[0]}: see above")
        return table

    def _entered(self, table: pd.DataFrame, cell: Cell, row: Mapping[str, Any]) -> pd.DataFrame:
        texts = {name: str(row.get(name, "")) for name in (*self.texts, "machine", "threads", "refused")}
        values = {name: float(row.get(name, "nan")) for name in self.values}
        entered = pd.DataFrame([{**dict(zip(self.keys, self.key(cell), strict=True)), **values, **texts}])
        return entered if table.empty else pd.concat([table, entered], ignore_index=True)


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], *, processes: int, threads: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with what `work` makes of it, as it is finished; `work` is a function of a module.

    Raises
    ------
    StudyError
        A process died.
    """
    if processes == 1:
        torch.set_num_threads(threads)
        for item in items:
            yield item, work(item)
        return
    # Not forked: a process that has computed with several threads cannot be forked safely.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, begin_process, (threads,))
    try:
        running = {pool.submit(work, item): item for item in items}
        for done in as_completed(running):
            yield running[done], done.result()
    except BrokenProcessPool:
        raise StudyError(
            "a process died, perhaps for want of memory; what was finished is in the file: run it again with fewer"
            " processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def begin_process(threads: int) -> None:
    """Set up a process of its own: so many of torch's threads, and it ends with the one that started it."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: nobody would take what it measures."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
