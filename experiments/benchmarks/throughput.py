"""What workers of `depfuse tune` lose by sharing a study in PostgreSQL, against as many independent searches.

    .ci/with-postgresql python -m experiments run throughput

Minutes a round; four workers of one thread each on digits, trials of one matching method, so that they take about as
long. The time begins when all have found their channel groups, and ends with the last trial. Measured with two
objectives, where no trial is given up; with one, where those behind the median are; and with refitted children.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import FunctionType
from typing import Any

import pandas as pd
from optuna.storages import JournalStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial

from depfuse.cli import main as depfuse
from depfuse.errors import RecipeError
from depfuse.study.search import Search
from experiments.lib.cells import Cells
from experiments.lib.command import check_counts
from experiments.lib.measurement import Measurement
from experiments.lib.parents.sets import SETS
from experiments.lib.processes import CellError, begin_process
from experiments.lib.tables import markdown

KEYS = ("round", "objectives", "refit", "way", "workers", "trials")
VALUES = ("trials_per_second", "seconds", "storage_share", "storage_seconds_per_trial")
WAYS = ("independent", "shared")
# Trials that take as long.
LIKE = "--data digits --set align.criterion=activations --set align.solver=emd --set merge.average=mean"
START = 900.0  # seconds in which all workers have to be ready


class Stopwatch:
    """Seconds that the main thread spends in the calls of storages, nested calls counted once."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self._clock = 0.0, clock
        self._within = False

    def watch(self, kind: type) -> None:
        """Measure all methods of a class from now on."""
        for name, method in vars(kind).copy().items():
            if isinstance(method, FunctionType) and not name.startswith("__"):
                setattr(kind, name, self._measured(method))

    def _measured(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def measured(*arguments: Any, **named: Any) -> Any:
            if self._within or threading.current_thread() is not threading.main_thread():
                return method(*arguments, **named)
            self._within, begun = True, self._clock()
            try:
                return method(*arguments, **named)
            finally:
                self._within = False
                self.seconds += self._clock() - begun

        return measured


def _work(words: Sequence[str], barrier: Barrier, results: Queue[tuple[int, float, float, float]]) -> None:
    """One worker: once all are ready, search; then say trials, when they began and ended, and the storage's seconds."""
    begin_process(1)
    watch, search = Stopwatch(), Search.run
    for storage in (JournalStorage, type(get_storage(RDBStorage("sqlite://")))):
        watch.watch(storage)

    def timed(self: Search) -> None:
        barrier.wait(START)
        begun = ended = time.time()
        before = storage = watch.seconds
        count, note = 0, self._on_trial
        assert note is not None

        def noted(trial: FrozenTrial) -> None:
            nonlocal count, ended, storage
            note(trial)
            count, ended, storage = count + 1, time.time(), watch.seconds

        self._on_trial = noted
        search(self)
        results.put((count, begun, ended, storage - before))

    Search.run = timed  # type: ignore[method-assign]
    raise SystemExit(depfuse(list(words)))


def measure(url: str | None, cell: Mapping[str, Any]) -> dict[str, float]:
    """Let workers search side by side, together or each for itself."""
    workers, trials = int(cell["workers"]), int(cell["trials"])
    common = [
        "tune",
        *map(str, SETS["digits"].paths),
        *LIKE.split(),
        "--set",
        f"refit={cell['refit']}",
        "--resume",
        "--quiet",
    ]
    common += ["--seconds"] * (int(cell["objectives"]) == 2)
    context = multiprocessing.get_context("spawn")  # torch and connections do not survive a fork
    barrier, results = context.Barrier(workers), context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        if cell["way"] == "shared":
            shared = ["--storage", str(url), "--study", uuid.uuid4().hex, "--trials", str(workers * trials)]
            own = [[*shared, "--seed", str(cell["round"]), "--out", folder]] * workers
        else:
            seeds = range(int(cell["round"]) * workers, (int(cell["round"]) + 1) * workers)
            own = [["--trials", str(trials), "--seed", str(s), "--out", str(Path(folder) / str(s))] for s in seeds]
        running = [context.Process(target=_work, args=([*common, *words], barrier, results)) for words in own]
        try:
            for process in running:
                process.start()
            while any(process.is_alive() for process in running) and not any(process.exitcode for process in running):
                time.sleep(0.1)
        finally:
            for process in running:
                process.kill()
    if any(process.exitcode for process in running):
        raise CellError("a worker did not come to its end: see above")
    counts, began, ended, storage = zip(*(results.get() for _ in running), strict=True)
    seconds = max(ended) - min(began)
    return {
        "trials_per_second": sum(counts) / seconds,
        "seconds": seconds,
        "storage_share": sum(storage) / sum(last - first for first, last in zip(began, ended, strict=True)),
        "storage_seconds_per_trial": sum(storage) / sum(counts),
    }


def table_of(rows: pd.DataFrame) -> str:
    """A line per kind of trial: medians over the rounds, and the ratio of each round's two figures."""
    head = [
        "refit",
        "objectives",
        *(f"trials/s {way}" for way in WAYS),
        "ratio by round",
        "median",
        "storage",
        "ms a trial",
    ]
    lines = []
    for (refit, objectives), own in rows.groupby(["refit", "objectives"], sort=False):
        by_round = own.pivot_table(index="round", columns="way", values="trials_per_second")
        ratios = (by_round["shared"] / by_round["independent"]).dropna()
        shared = own[own["way"] == "shared"]
        lines.append(
            [
                str(refit),
                str(objectives),
                *(f"{by_round[way].median():.2f}" for way in WAYS),
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
                f"{ratios.median():.2f}",
                f"{100 * shared['storage_share'].median():.1f} %",
                f"{1000 * shared['storage_seconds_per_trial'].median():.0f}",
            ]
        )
    return markdown(head, lines)


def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds; there is a database, or nothing is measured."""
    if "DEPFUSE_POSTGRESQL" not in os.environ and not options.tables_only:
        raise RecipeError("DEPFUSE_POSTGRESQL holds no URL of a database: run this by .ci/with-postgresql")
    check_counts(options, workers=1, trials=1, rounds=1)
    trials = options.trials
    return [
        {"round": number, "objectives": objectives, "refit": refit, "way": way, "workers": options.workers, "trials": n}
        for number in range(options.rounds)
        for objectives, refit, n in ((2, "none", trials), (1, "none", trials), (2, "ridge", max(1, trials // 5)))
        for way in WAYS
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare how much is measured."""
    parser.add_argument("--trials", type=int, default=25, metavar="N", help="of each worker; 25")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="4")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="3")


MEASUREMENT = Measurement(
    "throughput",
    __doc__,
    wanted,
    lambda _: Cells(KEYS, VALUES, partial(measure, os.environ.get("DEPFUSE_POSTGRESQL"))),
    lambda rows, _: table_of(rows),
    add_options,
)
