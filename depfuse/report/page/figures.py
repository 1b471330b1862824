"""Small drawings as SVG inside the page: bars and lines, coloured by its style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.ticker import MaxNLocator

from depfuse.report.page.markup import Html, element

_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 42
_TICKS = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])

Point: TypeAlias = "tuple[float, float | None]"
Placing: TypeAlias = Callable[[float, float], "tuple[float, float]"]


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y) in order of x, where y that is missing or not finite leaves a gap.

    `look` is the class that the style sheet knows it by; `band` holds the lower and upper edge of a band around it.
    """

    name: str
    look: str
    points: Sequence[Point]
    band: tuple[Sequence[Point], Sequence[Point]] | None = None


def bar(share: float | None, look: str = "") -> Html:
    """A bar that is filled to a share between 0 and 1; decoration beside the number that it shows."""
    filled = 0.0 if share is None or not math.isfinite(share) else min(max(share, 0.0), 1.0)
    fill = element("rect", width=f"{100 * filled:.1f}%", height="100%", class_="fill")
    return element(
        "svg", element("rect", width="100%", height="100%", class_="rail"), fill, class_=f"bar {look}".strip(),
        aria_hidden="true",
    )  # fmt: skip


def legend(lines: Sequence[Line]) -> Html:
    """The names of curves, each beside a piece of its line."""
    return element("ul", *(element("li", _sample(line.look), line.name) for line in lines), class_="legend")


def line_chart(says: str, across: str, upwards: str, lines: Sequence[Line]) -> Html:
    """Curves over one axis; `says` is what those who do not see the drawing are told, the others are axes' names."""
    shown = [point for line in lines for edge in (line.points, *(line.band or ())) for point in _finite(edge)]
    if not shown:
        return element("p", f"{upwards}: nothing finite to draw", class_="quiet")
    x_low, x_high = _limits([x for x, _ in shown])
    y_low, y_high = _limits([y for _, y in shown], margin=0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(right, 1), round(down, 1)

    parts: list[Html] = []
    for y in _ticks(y_low, y_high):
        down = place(x_low, y)[1]
        parts.append(element("path", d=f"M{_LEFT} {down}H{_WIDTH - _RIGHT}", class_="grid"))
        parts.append(element("text", f"{y:g}", x=_LEFT - 6, y=down + 4, text_anchor="end"))
    for x in _ticks(x_low, x_high):
        right = place(x, y_low)[0]
        parts.append(element("text", f"{x:g}", x=right, y=_HEIGHT - _BOTTOM + 17, text_anchor="middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(element("text", across, x=middle, y=_HEIGHT - 6, text_anchor="middle"))
    for line in lines:
        if line.band is not None:
            low, high = ([place(*point) for point in _finite(edge)] for edge in line.band)
            parts.append(element("path", d=_path([*low, *high[::-1]]) + "Z", class_=f"band {line.look}"))
    parts += [element("path", d=_curve(line.points, place), class_=f"line {line.look}") for line in lines]
    drawing = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=says, class_="chart")
    return element("figure", element("figcaption", upwards), drawing)


def _sample(look: str) -> Html:
    stroke = element("path", d="M0 6H26", class_=f"line {look}")
    return element("svg", stroke, width=26, height=12, aria_hidden="true")


def _curve(points: Sequence[Point], place: Placing) -> str:
    """The stretches of a curve between its gaps; a point alone between two gaps is a dot."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(x) and math.isfinite(y):
            stretches[-1].append(place(x, y))
        elif stretches[-1]:
            stretches.append([])
    return "".join(_path(stretch) + ("h0" if len(stretch) == 1 else "") for stretch in stretches if stretch)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{right:g} {down:g}" for right, down in places)


def _finite(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(x) and math.isfinite(y)]


def _limits(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    wide = high - low
    if wide <= 1e-9 * max(abs(low), abs(high), 1.0):
        return low - 0.5, high + 0.5
    return low - margin * wide, high + margin * wide


def _ticks(low: float, high: float) -> list[float]:
    return [float(tick) for tick in _TICKS.tick_values(low, high) if low <= tick <= high]
