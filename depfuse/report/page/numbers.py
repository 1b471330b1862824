"""Numbers as the page writes them."""

from __future__ import annotations

import math

from depfuse.tasks.scores import Measure

NOTHING = "–"


def per_cent(fraction: float | None) -> str:
    """Write a fraction as a percentage without its sign."""
    return decimal(None if fraction is None else 100 * fraction, 2)


def score(measure: Measure, value: float | None) -> str:
    """Write a score in the unit of its measure, without the unit."""
    return decimal(None if value is None else measure.number(value), measure.decimals)


def gain(measure: Measure, difference: float | None) -> str:
    """Write a difference of scores with its sign: of fractions, percentage points."""
    digits = measure.decimals
    if difference is None or not math.isfinite(difference):
        return decimal(difference, digits)
    rounded = round(measure.number(difference), digits) + 0.0
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def decimal(value: float | None, digits: int) -> str:
    """Write a number with so many digits after the point, or a dash where there is none."""
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "not finite"


def nats(loss: float | None) -> str:
    """Write a loss; a report holds none where it was not finite."""
    return "not finite" if loss is None else decimal(loss, 4)


def unbroken(sentence: str) -> str:
    """Keep numbers in one line with their per cent sign."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")
