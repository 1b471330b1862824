"""Work of several steps, of which the current one says how far it is, what it costs and what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from depfuse.progress.naming import within_part
from depfuse.progress.words import clock, rounded

LEAST_DONE = 0.01  # share of a step, from which its end is estimated
LONG = 60.0  # seconds of a stage, from which its cost is foretold
PACED = 2.0  # seconds of a step, after which its cost is estimated from its pace

LOST = "what was computed is lost, nothing was written, and the same command begins anew"

T = TypeVar("T")


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
        self._begin(within_part(description), total)

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

    def track(
        self, parts: Iterable[T], description: str, quicker: str = "", cost: Callable[[], float] | None = None
    ) -> Tracked[T]:
        """Make a step of going through `parts`, each time it is done.

        Parameters
        ----------
        parts
            Of the step.
        description
            Of the step.
        quicker
            What would take less time, see `advise`.
        cost
            Estimates the seconds of all parts before the first one, where that one may take minutes; from a minute on
            they are told then, else from the pace.
        """
        return Tracked(self, parts, description, quicker, cost)

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
        if not self.total or self.done < int(LEAST_DONE * self.total) or not self.done:
            return None
        return (time.monotonic() - self.began) * max(0, self.total - self.done) / self.done

    def __str__(self) -> str:
        counted = "" if self.total is None else f", {self.done:,} of {self.total:,}"
        left = "" if self.left is None else f", about {clock(self.left)} left"
        return f"{self.description}{counted}, {clock(time.monotonic() - self.began)} so far{left}"


class Tracked(Generic[T]):
    """Iterates over its parts and says how far it has come."""

    def __init__(
        self,
        work: Work,
        parts: Iterable[T],
        description: str,
        quicker: str = "",
        cost: Callable[[], float] | None = None,
    ) -> None:
        self._work, self._parts, self._description, self._quicker = work, parts, description, quicker
        self._cost = cost

    def __iter__(self) -> Iterator[T]:
        total = len(self._parts) if isinstance(self._parts, Sized) else None
        self._work.step(self._description, total)
        self._work.advise(self._quicker)
        if self._cost is not None and (seconds := self._cost()) >= LONG:
            self._work.foretell(seconds)
        for part in self._parts:
            yield part
            self._work.advance()
