"""How progress is shown: as a bar in a terminal, lines of a log, or below a notebook's cell."""

from __future__ import annotations

import html
import importlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from depfuse.progress.steps import Work
from depfuse.progress.words import wording

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY = 30.0  # seconds between lines where there is no terminal
REDRAWN = 0.25  # seconds between changes of a notebook's line


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


def display(progress: bool | None) -> Work:
    """Choose how progress is shown: not at all, or as suits where someone looks on."""
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
