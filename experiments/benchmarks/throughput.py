"""How many trials a second several workers of `depfuse tune` do, and how much of it is the storage's; see tune.py."""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import FunctionType
from typing import Any

from optuna.storages import JournalStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial

from depfuse.cli import main as depfuse
from depfuse.study.search import Search
from experiments.lib.cells import StudyError, begin_process
from experiments.lib.parents.sets import SETS

KEYS = ("round", "objectives", "refit", "way", "workers", "trials")
VALUES = ("trials_per_second", "seconds", "storage_share", "storage_seconds_per_trial")
WAYS = ("independent", "shared")
LIKE = "--data digits --criterion activations --solver emd --average mean"  # trials that take as long
START = 900.0  # seconds in which all workers have to be ready


class Stopwatch:
    """Seconds that the main thread spends in the calls of storages, nested calls counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
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
            self._within, begun = True, time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self._within = False
                self.seconds += time.perf_counter() - begun

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


def measure_throughput(url: str, cell: Mapping[str, Any]) -> dict[str, float]:
    """Let workers search side by side, together or each for itself."""
    workers, trials = int(cell["workers"]), int(cell["trials"])
    common = [
        "tune",
        *map(str, SETS["digits"].paths),
        *LIKE.split(),
        "--refit",
        str(cell["refit"]),
        "--resume",
        "--quiet",
    ]
    common += ["--seconds"] * (int(cell["objectives"]) == 2)
    context = multiprocessing.get_context("spawn")  # torch and connections do not survive a fork
    barrier, results = context.Barrier(workers), context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        if cell["way"] == "shared":
            shared = ["--storage", url, "--study", uuid.uuid4().hex, "--trials", str(workers * trials)]
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
        raise StudyError("a worker did not come to its end: see above")
    counts, began, ended, storage = zip(*(results.get() for _ in running), strict=True)
    seconds = max(ended) - min(began)
    return {
        "trials_per_second": sum(counts) / seconds,
        "seconds": seconds,
        "storage_share": sum(storage) / sum(last - first for first, last in zip(began, ended, strict=True)),
        "storage_seconds_per_trial": sum(storage) / sum(counts),
    }
