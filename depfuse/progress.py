"""Progress of long work: loops say how far they are, and whoever watches shows it; by default nobody does.

Shown are the current step, how far it is where its parts are counted, and for how long it will go on at that pace: as
a bar in a terminal, below the cell of a notebook, and as a line every 30 seconds where standard error is no terminal.
"""

from __future__ import annotations

import html
import importlib
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY = 30.0  # seconds between lines where there is no terminal
REDRAWN = 0.25  # seconds between changes of a notebook's line
LEAST_DONE = 0.01  # share of a step, from which its end is estimated

T = TypeVar("T")
OnStep = Callable[[str], None]


@dataclass
class Work:
    """The progress of some work: its current step, and how much of that is done. Shows nothing itself."""

    description: str = ""
    total: int | None = None
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def step(self, description: str, total: int | None = None) -> None:
        """Begin the next step; the one before it is over."""
        whole = f"{_part.get()}: {description}" if _part.get() else description
        self.description, self.total, self.done, self.began = whole, total, 0, time.monotonic()
        self.changed(begun=True)

    def enter(self, name: str, description: str) -> None:
        """Begin a step that has a name."""
        self.step(description)

    def advance(self) -> None:
        """Count one part of the current step as done."""
        self.done += 1
        self.changed()

    def describe(self, description: str) -> None:
        """Say something else of the current step."""
        self.description = description
        self.changed()

    def track(self, parts: Iterable[T], description: str) -> Tracked[T]:
        """Make a step of going through `parts`, each time it is done."""
        return Tracked(self, parts, description)

    def changed(self, *, begun: bool = False) -> None:
        """Show the progress."""

    def close(self) -> None:
        """Stop showing it."""

    @property
    def left(self) -> float | None:
        """Seconds to the end of the step at its pace so far; None where nothing is known of it."""
        if not self.total or self.done < LEAST_DONE * self.total or not self.done:
            return None
        return (time.monotonic() - self.began) * max(0, self.total - self.done) / self.done

    def __str__(self) -> str:
        counted = "" if self.total is None else f", {self.done:,} of {self.total:,}"
        left = "" if self.left is None else f", about {clock(self.left)} left"
        return f"{self.description}{counted}, {clock(time.monotonic() - self.began)} so far{left}"


ProgressLike = bool | OnStep | Work | None
"""Whether progress is shown, by default where someone looks on; or what is called with the name of each step, or told
of each part of it."""


class Tracked(Generic[T]):
    """Iterates over its parts and says how far it has come."""

    def __init__(self, work: Work, parts: Iterable[T], description: str) -> None:
        self._work, self._parts, self._description = work, parts, description

    def __iter__(self) -> Iterator[T]:
        self._work.step(self._description, len(self._parts) if isinstance(self._parts, Sized) else None)
        for part in self._parts:
            yield part
            self._work.advance()


class Announced(Work):
    """Calls a function with the name of each step that has one, and passes all on to who watches besides."""

    def __init__(self, on_step: OnStep, watching: Work) -> None:
        super().__init__()
        self._on_step, self._watching = on_step, watching

    def enter(self, name: str, description: str) -> None:
        """Begin a step, and call the function with its name."""
        self._on_step(name)
        self._watching.enter(name, description)

    def step(self, description: str, total: int | None = None) -> None:
        """Begin a step without a name."""
        self._watching.step(description, total)

    def advance(self) -> None:
        """Count one part of the current step as done."""
        self._watching.advance()

    def describe(self, description: str) -> None:
        """Say something else of the current step."""
        self._watching.describe(description)


class Bar(Work):
    """A line in a terminal that is redrawn, with a bar where the step's parts are counted; nothing of it stays."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None
        self._progress.start()

    def changed(self, *, begun: bool = False) -> None:
        """Redraw the line."""
        if begun and self._task is not None:
            self._progress.remove_task(self._task)
        if begun or self._task is None:
            self._task = self._progress.add_task(self.description, total=self.total, left="left" if self.total else "")
        else:
            self._progress.update(self._task, completed=self.done, description=self.description)

    def close(self) -> None:
        """Remove the line."""
        self._progress.stop()


class Lines(Work):
    """A line of text on standard error from time to time, for logs."""

    def __init__(self, every: float = EVERY) -> None:
        super().__init__()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, args=(every,), daemon=True)
        self._thread.start()

    def _write(self, every: float) -> None:
        while not self._over.wait(every):
            if self.description:
                print(f"depfuse: {self}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write no more."""
        self._over.set()
        self._thread.join()


class Cell(Work):
    """A changing line below a notebook's cell, with a bar where the step's parts are counted; nothing of it stays."""

    def __init__(self) -> None:
        super().__init__()
        display: Any = importlib.import_module("IPython.display")  # there, as the notebook runs on it
        self._html = display.HTML
        self._handle = display.display(display.HTML(""), display_id=True)
        self._drawn = 0.0

    def changed(self, *, begun: bool = False) -> None:
        """Redraw the line, not too often."""
        if begun or time.monotonic() - self._drawn >= REDRAWN:
            self._drawn = time.monotonic()
            bar = "" if self.total is None else f'<progress max="{self.total}" value="{self.done}"></progress> '
            self._handle.update(self._html(f"<div>{bar}{html.escape(str(self))}</div>"))

    def close(self) -> None:
        """Remove the line."""
        self._handle.update(self._html(""))


_NOBODY = Work()
_watching: ContextVar[Work | None] = ContextVar("depfuse_progress", default=None)
_part: ContextVar[str] = ContextVar("depfuse_part", default="")
_name: ContextVar[str] = ContextVar("depfuse_name", default="")


def work() -> Work:
    """Return the work that is watched now, to say how far it is."""
    return _watching.get() or _NOBODY


def name(otherwise: str) -> str:
    """Return what the current work is called where it is one of several of a kind."""
    return _name.get() or otherwise


@contextmanager
def named(what: str) -> Generator[None, None, None]:
    """Say what the work within the block is called."""
    before = _name.set(what)
    try:
        yield
    finally:
        _name.reset(before)


@contextmanager
def part(what: str) -> Generator[None, None, None]:
    """Say before each step within the block what it is a part of."""
    before = _part.set(what)
    try:
        yield
    finally:
        _part.reset(before)


@contextmanager
def unseen() -> Generator[None, None, None]:
    """Say nothing of the steps within the block, which all are one part of a step that is counted."""
    before = _watching.set(Work())
    try:
        yield
    finally:
        _watching.reset(before)


@contextmanager
def shown(progress: ProgressLike = None) -> Generator[Work, None, None]:
    """Show the progress of the block, unless somebody watches it already.

    Parameters
    ----------
    progress
        Whether to show it; where None, if someone looks on: in a notebook, or at a prompt in a terminal. A function is
        called with the name of each step that has one, and shows what it likes; so does a `Work`, which is told how
        far each step is.
    """
    watching = _watching.get()
    if callable(progress):
        watching = Announced(progress, watching or Work())
    elif isinstance(progress, Work):
        watching = progress
    elif watching is not None:
        yield watching
        return
    else:
        watching = _display(progress)
    before = _watching.set(watching)
    try:
        yield watching
    finally:
        _watching.reset(before)
        watching.close()


def clock(seconds: float) -> str:
    """Write seconds as `0:01:30`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _display(progress: bool | None) -> Work:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    notebook = _in_notebook()
    if progress is None:
        progress = notebook or (terminal and hasattr(sys, "ps1"))
    if not progress:
        return Work()
    if notebook:
        return Cell()
    return Bar() if terminal else Lines()


def _in_notebook() -> bool:
    """Tell whether the process is the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return shell is not None and getattr(shell, "kernel", None) is not None
