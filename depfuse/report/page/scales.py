"""Scales of a drawing's axes: from a value to its place between two ends, and the marks of the scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import LogLocator, MaxNLocator

_TICKS = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
_LOG_TICKS = [LogLocator(subs=subs) for subs in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))]
_MOST_TICKS = 6  # unless powers of ten alone are more
_LONGEST = 18  # characters of a name


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`; `ticks` are values with their labels.

    On a scale of names a name is its number, from 0 at the high end.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Return the position of a value between the ends, from 0 to 1; on a logarithmic scale it is positive."""
        low, high, at = (math.log(end) if self.log else end for end in (self.low, self.high, value))
        return (at - low) / (high - low)


def linear(values: Sequence[float], margin: float = 0.0, *, whole: bool = False) -> Scale:
    """Make a scale that holds all values and a margin, a share of their range; ticks may be `whole` only."""
    low, high = _limits(values, margin)
    ticks = [float(tick) for tick in _TICKS.tick_values(low, high) if low <= tick <= high]
    return Scale(low, high, [(tick, f"{tick:g}") for tick in ticks if tick.is_integer() or not whole])


def logarithmic(values: Sequence[float], margin: float = 0.0) -> Scale:
    """Make a logarithmic scale that holds all values, which are positive, and a margin."""
    low, high = (math.exp(end) for end in _limits([math.log(value) for value in values], margin))
    for locator in _LOG_TICKS:
        ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(ticks) <= _MOST_TICKS:
            break
    return Scale(low, high, [(tick, f"{tick:g}") for tick in ticks], log=True)


def named(names: Sequence[str]) -> Scale:
    """Make a scale with a place for each name, the first at the high end."""
    short = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    return Scale(len(names) - 0.5, -0.5, [(float(place), name) for place, name in enumerate(short)])


def _limits(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    wide = high - low
    if wide <= 1e-9 * max(abs(low), abs(high), 1.0):
        return low - 0.5, high + 0.5
    return low - margin * wide, high + margin * wide
