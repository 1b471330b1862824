"""Who watches the current work, and is told how far it is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from depfuse.progress.displays import display
from depfuse.progress.steps import T, Work

OnStep = Callable[[str], None]
ProgressLike = bool | OnStep | Work | None
"""Whether progress is shown, by default where someone looks on; or what is called with the name of each step, or told
of each part of it."""

_NOBODY = Work()
_watching: ContextVar[Work | None] = ContextVar("depfuse_progress", default=None)


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


def work() -> Work:
    """Return the work that is watched now, to say how far it is."""
    return _watching.get() or _NOBODY


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
        watching = display(progress)
    before = _watching.set(watching)
    try:
        yield watching
    finally:
        _watching.reset(before)
        watching.close()
