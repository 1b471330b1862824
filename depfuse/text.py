"""Text from outside, such as names of files and their content, for display and for storage."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any


def readable(text: str) -> str:
    """Escape control and other unprintable characters, except line breaks."""
    return "".join(
        ascii(one)[1:-1] if one != "\n" and unicodedata.category(one).startswith("C") else one for one in text
    )


def storable(value: Any) -> Any:
    """Escape what JSON cannot hold in the text of plain values: names of files may have bytes that are no Unicode."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {storable(key): storable(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(storable(one) for one in value)
    return value


def first_line(error: BaseException) -> str:
    """Quote the first line of an exception's message, or the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def decimal(number: float) -> str:
    """Write a loss or distance with four decimals, and a very large one as a power of ten: 0.1234, 5.269e+20."""
    return f"{number:.4f}" if abs(number) < 1e6 else f"{number:.4g}"


def counted(number: int, thing: str) -> str:
    """Write `1 run`, `2 runs`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def few(names: Sequence[object], most: int = 5) -> str:
    """List the first of some names, with dots after them where there are more: `cat, dog, ...`."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def short_paths(paths: Sequence[str]) -> list[str]:
    """Leave out the folders of files that do not tell them apart: a.pt and b.pt, or fold_0/a.pt and fold_1/a.pt.

    As many of the last parts stay of each; all of the path where no number of them does.
    """
    parts = [PurePath(path).parts for path in paths]
    for count in range(1, max(map(len, parts), default=1)):
        short = ["/".join(own[-count:]) for own in parts]
        if len(set(short)) == len(set(paths)) and not any(own[-count:][0] == "/" for own in parts):
            return short
    return list(paths)
