"""Times of parts of a computation, from which the cost of the whole is foretold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec

import torch

Clock = Callable[[], float]
P = ParamSpec("P")


class Stopwatch:
    """Measures the seconds of functions that compute with tensors.

    Parameters
    ----------
    clock
        Gives seconds; the system's where None.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or time.perf_counter

    def seconds(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
        """Run a function once, a GPU's work before and in it finished."""
        _finish()
        started = self._clock()
        function(*args, **kwargs)
        _finish()
        return self._clock() - started


def _finish() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
