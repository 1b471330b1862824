"""Text that others chose: names of files and what is in them, to be shown and to be stored."""

from __future__ import annotations

import unicodedata
from typing import Any


def readable(text: str) -> str:
    """Show what cannot be printed, or what a terminal would obey, as its escape; the rest stays, line breaks too."""
    return "".join(
        ascii(one)[1:-1] if one != "\n" and unicodedata.category(one).startswith("C") else one for one in text
    )


def storable(value: Any) -> Any:
    """Plain values with every text such as JSON can hold: names of files may have bytes that are no Unicode."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {storable(key): storable(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(storable(one) for one in value)
    return value


def first_line(error: BaseException) -> str:
    """Quote the first line of what an exception says, or the name of its type."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
