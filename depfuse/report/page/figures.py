"""Small drawings as SVG inside the page: bars, lines and marks, coloured by its style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from depfuse.report.page.markup import Html, element
from depfuse.report.page.scales import Scale, linear

_WIDTH, _HEIGHT = 360, 220  # pixels of a chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 42  # its margins, pixels
_CHARACTER, _LINE = 8.3, 14  # how wide a digit is in the widest usual font, and how high a line, pixels
_BETWEEN = 6  # pixels between the names of two ticks, at least

Point: TypeAlias = "tuple[float, float | None]"
Placing: TypeAlias = Callable[[float, float], "tuple[float, float]"]


@dataclass(frozen=True)
class Line:
    """A curve through points (x, y) in order of x; y that is missing or not finite leaves a gap.

    `look` is its class in the style sheet; `band` holds the lower and upper edge of a band around it.
    """

    name: str
    look: str
    points: Sequence[Point]
    band: tuple[Sequence[Point], Sequence[Point]] | None = None


@dataclass(frozen=True)
class Mark:
    """A mark in a drawing; `says` is its tooltip, `look` its class in the style sheet.

    A mark without `y` is a stroke below the lower edge. `label` is written beside it, unless an earlier one is there.
    """

    x: float
    y: float | None
    look: str
    says: str
    label: str | None = None


def bar(share: float | None) -> Html:
    """Draw a bar filled to a share between 0 and 1, as decoration beside the number."""
    filled = 0.0 if share is None or not math.isfinite(share) else min(max(share, 0.0), 1.0)
    fill = element("rect", width=f"{100 * filled:.1f}%", height="100%", class_="fill")
    return element(
        "svg", element("rect", width="100%", height="100%", class_="rail"), fill, class_="bar",
        aria_hidden="true",
    )  # fmt: skip


def legend(lines: Sequence[Line], marks: Mapping[str, Mark] | None = None) -> Html:
    """Write the names of curves and of marks, each beside a sample of it."""
    samples = [(_stroke(line.look), line.name) for line in lines]
    samples += [(_mark(mark, 13, 6, 3), name) for name, mark in (marks or {}).items()]
    return element("ul", *(element("li", _sample(sample), name) for sample, name in samples), class_="legend")


def chart(
    says: str,
    across: str,
    upwards: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    x: Scale | None = None,
    y: Scale | None = None,
) -> Html:
    """Draw curves and marks over one axis.

    `says` is the text for screen readers, `across` and `upwards` are the axes' names; scales that are not given
    hold all that is drawn.
    """
    shown = [point for line in lines for edge in (line.points, *(line.band or ())) for point in _finite(edge)]
    heights = [height for _, height in shown] + [mark.y for mark in marks if mark.y is not None]
    if not heights:
        return element("p", f"{upwards}: nothing finite to draw", class_="quiet")
    x = x or linear([right for right, _ in shown] + [mark.x for mark in marks])
    y = y or linear(heights, margin=0.05)
    left = max(_LEFT, round(12 + _CHARACTER * max((len(text) for _, text in y.ticks), default=0)))
    lowest = _HEIGHT - _BOTTOM

    def place(right: float, up: float) -> tuple[float, float]:
        return (
            round(left + x.share(right) * (_WIDTH - left - _RIGHT), 1),
            round(lowest - y.share(up) * (lowest - _TOP), 1),
        )

    parts: list[Html] = []
    for tick, text in y.ticks:
        down = place(x.low, tick)[1]
        parts.append(element("path", d=f"M{left} {down}H{_WIDTH - _RIGHT}", class_="grid"))
        parts.append(element("text", text, x=left - 6, y=down + 4, text_anchor="end"))
    for tick, text in _with_room(x.ticks, lambda tick: place(tick, y.low)[0]):
        parts.append(element("text", text, x=place(tick, y.low)[0], y=lowest + 17, text_anchor="middle"))
    parts.append(element("text", across, x=(left + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, text_anchor="middle"))
    for line in lines:
        if line.band is not None:
            low, high = ([place(*point) for point in _finite(edge)] for edge in line.band)
            parts.append(element("path", d=_path([*low, *high[::-1]]) + "Z", class_=f"band {line.look}"))
    parts += [element("path", d=_curve(line.points, place), class_=f"line {line.look}") for line in lines]
    labels: list[tuple[float, float]] = []
    for mark in marks:
        right, down = place(mark.x, y.low if mark.y is None else mark.y)
        parts.append(_mark(mark, right, down, lowest))
        wide = _CHARACTER * len(mark.label or "")
        near = any(abs(right - other) < wide + 5 and abs(down - height) < _LINE for other, height in labels)
        if mark.label and not near:
            labels.append((right, down))
            anchor, beside = ("end", -5) if right + 5 + wide > _WIDTH else (None, 5)
            parts.append(
                element("text", mark.label, x=round(right + beside, 1), y=round(down - 5, 1), text_anchor=anchor)
            )
    drawing = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=says, class_="chart")
    return element("figure", element("figcaption", upwards), drawing)


def _with_room(ticks: Sequence[tuple[float, str]], place: Callable[[float], float]) -> Sequence[tuple[float, str]]:
    """Choose every tick whose name has room, or every second one, or third, ...: names neither meet nor are cut off."""
    for step in range(1, len(ticks) + 1):
        chosen = ticks[::step]
        ends = [
            (place(tick) - _CHARACTER * len(text) / 2, place(tick) + _CHARACTER * len(text) / 2)
            for tick, text in chosen
        ]
        if all(end + _BETWEEN <= start for (_, end), (start, _) in pairwise(ends)):
            return [tick for tick, (start, end) in zip(chosen, ends, strict=True) if start >= 0 and end <= _WIDTH]
    return ()


def _stroke(look: str) -> Html:
    return element("path", d="M0 6H26", class_=f"line {look}")


def _mark(mark: Mark, right: float, down: float, lowest: float) -> Html:
    title = element("title", mark.says)
    if mark.y is None:
        return element("path", title, d=f"M{right:g} {lowest}v5", class_=f"mark line {mark.look}")
    return element("circle", title, cx=right, cy=down, r=3.5, class_=f"mark {mark.look}")


def _sample(drawn: Html) -> Html:
    return element("svg", drawn, width=26, height=12, aria_hidden="true")


def _curve(points: Sequence[Point], place: Placing) -> str:
    """Draw the stretches of a curve between its gaps; a single point between two gaps becomes a dot."""
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
