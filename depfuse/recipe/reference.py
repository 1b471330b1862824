"""Reference of all settings, generated from their fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from depfuse.errors import RecipeError
from depfuse.recipe.arrange import Place, places
from depfuse.recipe.fields import about
from depfuse.recipe.recipe import Recipe

HEAD = """# Settings

Written by `depfuse settings --markdown` from the fields of `depfuse.Recipe`. On the command line
`--set align.solver=sinkhorn`, in Python `Recipe(align={"solver": "sinkhorn"})`, in a file the same sections. Where
a value stands behind a path, the setting is there for that alternative alone; elsewhere it cannot be written.
"""


@dataclass(frozen=True)
class Line:
    """A setting as the reference shows it."""

    path: str
    where: str
    default: str
    values: str
    text: str


def lines(name: str = "") -> list[Line]:
    """Return the settings whose path begins with a name, all where it is empty, in their order.

    Raises
    ------
    RecipeError
        There is no such setting; the message suggests a similar one.
    """
    every = list(_every())
    chosen = [line for line in every if line.path == name or line.path.startswith(f"{name}.") or not name]
    if not chosen:
        near = difflib.get_close_matches(name, [line.path for line in every], n=1)
        meant = f"did you mean {near[0]}?" if near else "`depfuse settings` lists all settings"
        raise RecipeError(f"there is no setting {name!r}: {meant}")
    return chosen


def markdown() -> str:
    """Write the page of all settings."""
    rows = [
        f"| `{line.path}`{f' ({line.where})' if line.where else ''} | {line.values} | {line.default} | {line.text} |"
        for line in lines()
    ]
    return "\n".join([HEAD, "| setting | values | default | |", "| --- | --- | --- | --- |", *rows, ""])


def _every() -> Iterator[Line]:
    seen: dict[tuple[str, str], list[str]] = {}
    lines_by_place: dict[tuple[str, str], Line] = {}
    for place in places(Recipe):
        if place.path == "preset":
            continue
        last = [*place.case.values()][-1][0] if place.case else ""
        line = _line(place)
        key = (line.path, line.text + line.default)
        seen.setdefault(key, []).append(str(last))
        lines_by_place.setdefault(key, line)
    for key, line in lines_by_place.items():
        where = ", ".join(dict.fromkeys(name for name in seen[key] if name))
        yield Line(line.path, where, line.default, line.values, line.text)


def _line(place: Place) -> Line:
    extra = about(place.field)
    text = place.field.description or ""
    if place.registry is not None:
        meanings = [f"{name}: {_first_line(kind)}" for name, kind in place.registry.items() if kind.__doc__]
        text = f"{text} ({'; '.join(meanings)})"
    notes = [f"unit: {extra['unit']}" if "unit" in extra else "", str(extra.get("source", ""))]
    text = "; ".join(filter(None, [text, *notes]))
    return Line(place.path, "", _written(place.default), _values(place), text)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _values(place: Place) -> str:
    if place.choices:
        return ", ".join(_written(value) for value in place.choices)
    limits = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{words} {getattr(bound, name):g}"
        for bound in place.field.metadata
        for name, words in limits.items()
        if hasattr(bound, name)
    ]
    kind = str(place.field.annotation)
    what = next((words for part, words in _KINDS.items() if part in kind), "text")
    return ", ".join([what, *bounds])


_KINDS = {"bool": "no, yes", "tuple": "numbers", "int": "whole number", "float": "number"}


def _written(value: Any) -> str:
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
