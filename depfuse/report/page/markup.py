"""HTML that cannot be broken by what it shows: text becomes markup in one place only, escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

_WITHOUT_END = frozenset({"input", "link", "meta"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, *content: str | None, **attributes: str | float | bool | None) -> Html:
    """Build one element; content that is not `Html` is escaped, and so are all attributes.

    In attributes' names `class_` stands for class, and an underscore for a hyphen. True gives an attribute without a
    value; None and False leave it out.
    """
    opening = tag + "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _WITHOUT_END:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(content)}</{tag}>")


def join(parts: Iterable[str | None], between: str = "") -> Html:
    """Concatenate parts; those that are not `Html` are escaped, and None is left out."""
    return Html(between.join(escape(part) for part in parts if part is not None))


def escape(text: str) -> Html:
    """Escape text."""
    return text if isinstance(text, Html) else Html(html.escape(text))


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    named = name.removesuffix("_").replace("_", "-")
    return f" {named}" if value is True else f' {named}="{html.escape(str(value))}"'
