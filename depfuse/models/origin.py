"""Origin of an architecture string: the user or a file.

A string of the user may name the user's own code: a function of a file or module, which is imported and called. A
string from a file, a `FromFile`, is data: it may name a built-in network, or one of torchvision, timm, transformers or
spandrel with plain values, and nothing that it names is imported. For the smallest example,
`build_network("nets.py:net")` runs nets.py, and `build_network(FromFile("nets.py:net"))` raises an `ArchitectureError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from depfuse.text import readable

REGISTRIES = ("", "torchvision", "timm", "transformers", "spandrel")
SHOWN = 120  # characters of a file's text in an error message
_WORD = re.compile(r"[\w.+\- ]{0,100}")
_LARGEST = 1_000_000  # of a number, which may be how often something is repeated
_LONGEST = 1000  # sequence of numbers
# Parts of argument names by which the registries read or fetch files, and argument names that select another network.
_READS = frozenset({"pretrained", "weights", "checkpoint", "cache", "url", "file", "dir", "hub", "repo", "cfg"})
_READS_NOT = frozenset({"init_weights", "use_cache"})
_RENAMES = frozenset({"model_name", "name", "builder", "backbone"})


class FromFile(str):
    """An architecture as a file names it."""

    __slots__ = ()


def shown(text: str) -> str:
    """Format a file's text for a message: on one line, cut where it is long, without control characters."""
    plain = readable(" ".join(text.split()))
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}..."


def why_not(source: str, arguments: Mapping[str, Any]) -> str | None:
    """Explain why an architecture of this source and arguments is not built when a file names it; None if it is.

    The text continues a sentence after "which".
    """
    if source not in REGISTRIES:
        return "is code of somebody's own, and reading a file runs none"
    for name, value in arguments.items():
        if any(_may_read(key, own) for key, own in _named(name, value)):
            return f"may fetch or read other files ({shown(name)})"
        inner = _named(name, value)[1:] if source == "transformers" else []  # a part's own configuration
        if not (all(_is_plain(key) and _is_plain(own) for key, own in inner) if inner else _is_plain(value)):
            return f"is given no plain value ({shown(name)})"
    return None


def _may_read(name: str, value: object) -> bool:
    """Tell whether an argument makes a registry read or fetch something."""
    reads = _READS & set(name.lower().split("_")) and name not in _READS_NOT
    return (bool(reads) and bool(value)) or name in _RENAMES


def _named(name: str, value: object) -> list[tuple[str, object]]:
    """List an argument, and what it holds by name."""
    inner = value.items() if isinstance(value, dict) else ()
    return [(name, value), *((str(key), own) for key, own in inner)]


def _is_plain(value: object, *, nested: bool = False) -> bool:
    """Tell whether a value is a small number, a word, or a short sequence of these."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= _LARGEST
    if isinstance(value, (list, tuple)):
        deeper = not nested or all(not isinstance(one, (list, tuple)) for one in value)
        return deeper and len(value) <= _LONGEST and all(_is_plain(one, nested=True) for one in value)
    return value is None
