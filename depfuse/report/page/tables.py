"""Tables for the page: plain ones, and ones that a reader can sort."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from depfuse.report.page.markup import Html, element
from depfuse.report.page.numbers import NOTHING

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a sortable table, sorted by its `value` where it has one, else by its text.

    `look` is the class of its cells in the style sheet; numbers have their own.
    """

    head: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None] | None = None
    look: str | None = None


def plain_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], marked: int | None = None) -> Html:
    """Build a table whose first column names its rows and whose others are numbers; row `marked` is emphasised."""
    body = [
        element(
            "tr",
            element("th", cells[0], scope="row"),
            *(element("td", cell, class_="number") for cell in cells[1:]),
            class_="marked" if number == marked else None,
        )
        for number, cells in enumerate(rows)
    ]
    head = [element("th", text, scope="col", class_="number" if place else None) for place, text in enumerate(heads)]
    return scrolling(caption, element("table", element("thead", element("tr", *head)), element("tbody", *body)))


def sortable_table(
    caption: str,
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    identity: Callable[[Row], str] | None,
    sorted_by: str,
    *,
    rising: bool = False,
) -> Html:
    """Build a table with a button at the head of each column; columns that are empty in all rows are left out.

    `identity` is the id of the details that a row belongs to; its first cell links there. `sorted_by` is the column
    that the rows are sorted by, highest first, or lowest first if `rising`; rows without a number come last.
    """
    shown = [column for column in columns if any(column.text(row) not in ("", NOTHING) for row in rows)]
    rows = sorted(rows, key=_rank(next(column for column in columns if column.head == sorted_by), rising))
    head = [
        element(
            "th",
            element("button", column.head, type="button"),
            scope="col",
            class_="number" if column.value else None,
            aria_sort=("ascending" if rising else "descending") if column.head == sorted_by else None,
        )
        for column in shown
    ]
    body = []
    for row in rows:
        run = None if identity is None else identity(row)
        body.append(element("tr", *_cells(shown, row, run), data_run=run))
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body), class_="sortable")
    return scrolling(caption, table)


def scrolling(caption: str, table: Html) -> Html:
    """Wrap a table so that it scrolls where it is too wide, by keyboard as well."""
    return element("div", table, class_="wide", role="region", aria_label=caption, tabindex=0)


def _rank(column: Column[Row], rising: bool) -> Callable[[Row], float]:
    def key(row: Row) -> float:
        value = column.value(row) if column.value else None
        return math.inf if value is None or not math.isfinite(value) else value if rising else -value

    return key


def _cells(columns: Sequence[Column[Row]], row: Row, run: str | None) -> list[Html]:
    cells = []
    for place, column in enumerate(columns):
        value = None if column.value is None else column.value(row)
        finite = value is not None and math.isfinite(value)
        text = column.text(row)
        content = text if place or run is None else element("a", text, href=f"#{run}")
        cells.append(
            element(
                "td" if place else "th",
                content,
                scope=None if place else "row",
                class_="number" if column.value else column.look,
                data_value=f"{value:.9g}" if finite else None,
            )
        )
    return cells
