"""Numbers as the page writes them."""

from __future__ import annotations

import math

NOTHING = "–"


def per_cent(fraction: float | None) -> str:
    """Write a fraction as a percentage without its sign."""
    return decimal(None if fraction is None else 100 * fraction, 2)


def points(difference: float | None) -> str:
    """Write a difference of fractions in percentage points, with its sign."""
    if difference is None or not math.isfinite(difference):
        return decimal(difference, 2)
    rounded = round(100 * difference, 2) + 0.0
    return f"{rounded:+.2f}".replace("-", "−") if rounded else "0.00"


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
