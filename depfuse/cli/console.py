"""Console output: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from depfuse.cli.wording import in_options
from depfuse.errors import DepfuseWarning
from depfuse.text import readable

_UNFOLDED = 10_000

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Sized(Protocol[T_co]):
    """Something to go through, of a known length."""

    def __iter__(self) -> Iterator[T_co]: ...
    def __len__(self) -> int: ...


class Work:
    """The progress of one command: a line that names the current step, with a bar where it can be counted."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def step(self, description: str, total: int | None = None) -> None:
        """Begin the next step; the one before it is over."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total)

    def advance(self) -> None:
        """Count one part of the current step as done."""
        if self._task is not None:
            self._progress.advance(self._task)

    def reach(self, completed: int, description: str) -> None:
        """Say how far the current step has come."""
        if self._task is not None:
            self._progress.update(self._task, completed=completed, description=description)

    def track(self, parts: Sized[T], description: str) -> Tracked[T]:
        """Make a step of going through `parts`, each time it is done."""
        return Tracked(self, parts, description)


class Tracked(Generic[T]):
    """Iterates over its parts and shows how far it has come."""

    def __init__(self, work: Work, parts: Sized[T], description: str) -> None:
        self._work, self._parts, self._description = work, parts, description

    def __iter__(self) -> Iterator[T]:
        self._work.step(self._description, len(self._parts))
        for part in self._parts:
            yield part
            self._work.advance()


class Screen:
    """Prints results, unless the user wants quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    @contextmanager
    def working(self) -> Generator[Work, None, None]:
        """Show progress on standard error while the block runs; nothing of it stays."""
        # Without a terminal there is nothing to animate, and a log should not fill with bars.
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=self._quiet or not sys.stderr.isatty(),
        )
        with progress:
            yield Work(progress)

    def show(self, result: RenderableType) -> None:
        """Print a table or a tree on standard output; it is folded to fit a terminal, and nothing else."""
        if not self._quiet:
            Console(width=None if sys.stdout.isatty() else _UNFOLDED, markup=False, emoji=False).print(result)

    def say(self, text: str) -> None:
        """Print plain text on standard output, not wrapped."""
        if not self._quiet:
            print(readable(text))


def complain(sentence: str) -> None:
    """Print one line on standard error; what the library calls its arguments are options in it."""
    print(f"depfuse: {readable(' '.join(in_options(sentence).split()))}", file=sys.stderr)


@contextmanager
def warnings_in_one_line() -> Generator[None, None, None]:
    """Show every `DepfuseWarning` as one line on standard error, each text once.

    What the user's own filters (`python -W`, PYTHONWARNINGS) say of them counts for more.
    """
    shown: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", DepfuseWarning, append=bool(sys.warnoptions))
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: object) -> None:
            if not issubclass(category, DepfuseWarning):
                usual(message, category, *place)  # type: ignore[arg-type]
            elif str(message) not in shown:
                shown.add(str(message))
                complain(f"warning: {message}")

        warnings.showwarning = show  # type: ignore[assignment]
        yield
