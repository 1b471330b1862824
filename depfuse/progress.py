"""Progress of long work: loops say how far they are, and whoever watches shows it; by default nobody does.

Shown are the current step, how far it is where its parts are counted, and for how long it will go on at that pace: as
a bar in a terminal, below the cell of a notebook, and as a line every 30 seconds where standard error is no terminal.
What will take over a minute is foretold in a sentence, with what would be quicker: before it begins where its cost is
known, and else after its first seconds, from their pace.
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
LONG = 60.0  # seconds of a stage, from which its cost is foretold
PACED = 2.0  # seconds of a step, after which its cost is estimated from its pace

LOST = "what was computed is lost, nothing was written, and the same command begins anew"

T = TypeVar("T")
OnStep = Callable[[str], None]


@dataclass
class Work:
    """The progress of some work: its current step, and how much of that is done. Shows nothing itself.

    Attributes
    ----------
    description, total, done, began
        Of the current step: what it is, its parts if they are counted and how many of them are done, and its start.
    remains
        What an interruption leaves, in a sentence; empty where all is lost.
    """

    description: str = ""
    total: int | None = None
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    remains: str = ""
    _quicker: str = ""
    _foretold: bool = False
    _paced: bool = False

    def step(self, description: str, total: int | None = None) -> None:
        """Begin the next step; the one before it is over."""
        self._begin(f"{_part.get()}: {description}" if _part.get() else description, total)

    def enter(self, name: str, description: str) -> None:
        """Begin a stage that has a name; its steps follow."""
        self._foretold = False
        self.step(description)

    def advise(self, quicker: str) -> None:
        """Note what would take less time than the step that has begun, to be said with what it costs."""
        self._quicker = quicker

    def advance(self) -> None:
        """Count one part of the current step as done."""
        self.done += 1
        self.changed()
        passed = time.monotonic() - self.began
        if not self._paced and passed >= PACED and (left := self.left) is not None:
            self._paced = True
            if not self._foretold:
                self._tell(passed + left)

    def foretell(self, seconds: float) -> None:
        """Say what the current stage costs, where that is over a minute; nothing more is said of its steps."""
        self._foretold = True
        self._tell(seconds)

    def keeps(self, sentence: str) -> None:
        """Note what an interruption leaves from now on."""
        self.remains = sentence

    def say(self, sentence: str) -> None:
        """Show a sentence that stays."""

    def _begin(self, description: str, total: int | None) -> None:
        self.description, self.total, self.done, self.began = description, total, 0, time.monotonic()
        self._quicker, self._paced = "", False
        self.changed(begun=True)

    def _tell(self, seconds: float) -> None:
        if seconds >= LONG:
            rest = f"; {self._quicker}" if self._quicker else ""
            self.say(f"{self.description} will take about {rounded(seconds)}{rest}")

    def describe(self, description: str) -> None:
        """Say something else of the current step."""
        self.description = description
        self.changed()

    def track(self, parts: Iterable[T], description: str, quicker: str = "") -> Tracked[T]:
        """Make a step of going through `parts`, each time it is done."""
        return Tracked(self, parts, description, quicker)

    def within(self, parts: Iterable[T], description: str) -> Iterator[T]:
        """Go through parts of the current step as a step of its own, unless that one's parts are counted already."""
        if self.total is not None and self.done < self.total:
            yield from parts
            return
        before, quicker = self.description, self._quicker
        yield from self.track(parts, description, quicker)
        self._begin(before, None)
        self._quicker = quicker

    def interrupted(self) -> str:
        """Say in a sentence what an interruption loses, and what remains."""
        at = f" while {self}" if self.description else ""
        return f"interrupted{at}: {self.remains or LOST}"

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

    def __init__(self, work: Work, parts: Iterable[T], description: str, quicker: str = "") -> None:
        self._work, self._parts, self._description, self._quicker = work, parts, description, quicker

    def __iter__(self) -> Iterator[T]:
        total = len(self._parts) if isinstance(self._parts, Sized) else None
        self._work.step(self._description, total)
        self._work.advise(self._quicker)
        for part in self._parts:
            yield part
            self._work.advance()


class Announced(Work):
    """Calls a function with the name of each step that has one, and passes all on to who watches besides."""

    def __init__(self, on_step: OnStep, watching: Work) -> None:
        super().__init__()
        self._on_step, self._watching = on_step, watching

    def enter(self, name: str, description: str) -> None:
        """Begin a stage, and call the function with its name."""
        self._on_step(name)
        self._watching.enter(name, description)

    def step(self, description: str, total: int | None = None) -> None:
        """Begin a step without a name."""
        self._watching.step(description, total)

    def advise(self, quicker: str) -> None:
        """Note what would take less time."""
        self._watching.advise(quicker)

    def advance(self) -> None:
        """Count one part of the current step as done."""
        self._watching.advance()

    def describe(self, description: str) -> None:
        """Say something else of the current step."""
        self._watching.describe(description)

    def foretell(self, seconds: float) -> None:
        """Say what the current stage costs."""
        self._watching.foretell(seconds)

    def keeps(self, sentence: str) -> None:
        """Note what an interruption leaves from now on."""
        self._watching.keeps(sentence)

    def within(self, parts: Iterable[T], description: str) -> Iterator[T]:
        """Go through parts of the current step."""
        return self._watching.within(parts, description)

    def say(self, sentence: str) -> None:
        """Show a sentence that stays."""
        self._watching.say(sentence)


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

    def say(self, sentence: str) -> None:
        """Print a sentence above the line."""
        self._progress.console.print(f"depfuse: {wording.get()(sentence)}", markup=False, highlight=False)

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

    def say(self, sentence: str) -> None:
        """Write a sentence at once."""
        print(f"depfuse: {wording.get()(sentence)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write no more."""
        self._over.set()
        self._thread.join()


class Cell(Work):
    """A changing line below a notebook's cell, with a bar where the step's parts are counted; nothing of it stays."""

    def __init__(self) -> None:
        super().__init__()
        display: Any = importlib.import_module("IPython.display")  # there, as the notebook runs on it
        self._html, self._show = display.HTML, display.display
        self._handle = display.display(display.HTML(""), display_id=True)
        self._drawn = 0.0

    def changed(self, *, begun: bool = False) -> None:
        """Redraw the line, not too often."""
        if begun or time.monotonic() - self._drawn >= REDRAWN:
            self._drawn = time.monotonic()
            bar = "" if self.total is None else f'<progress max="{self.total}" value="{self.done}"></progress> '
            self._handle.update(self._html(f"<div>{bar}{html.escape(str(self))}</div>"))

    def say(self, sentence: str) -> None:
        """Show a sentence below the line."""
        self._show(self._html(f"<div>{html.escape(sentence)}</div>"))

    def close(self) -> None:
        """Remove the line."""
        self._handle.update(self._html(""))


_NOBODY = Work()
wording: ContextVar[Callable[[str], str]] = ContextVar("depfuse_wording", default=str)
"""How sentences are worded for who reads them: the command line writes options for arguments."""
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


def rounded(seconds: float) -> str:
    """Write seconds of a minute and more as people say them: `90 seconds`, `7 minutes`, `3 hours`."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{10 * round(seconds / 10)} seconds"


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
