"""What a checkpoint holds, as text and tables: sets of weights by key, and short values of all else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from depfuse.errors import ArchitectureError
from depfuse.io.contents import Contents
from depfuse.io.inert import Record
from depfuse.io.weights import Place
from depfuse.models.origin import shown
from depfuse.models.spandrel_networks import recognise
from depfuse.report.tables import plain_table
from depfuse.text import counted

_ENTRIES, _DEEPEST, _CHARACTERS = 40, 3, 160  # what is shown of other entries
_WIDTH = 6  # elements of a list or dict
TOP = "(top)"


def heading(path: Path, contents: Contents) -> list[str]:
    """Say what a file is, and what its card says."""
    names = ", ".join([*(shown(own.name) for own in contents.files[:4]), *["..."] * (len(contents.files) > 4)])
    others = "" if contents.files == (path,) else f", {counted(len(contents.files), 'file')}: {names}"
    pickled = f", a pickled {shown(contents.loaded.kind)}" if isinstance(contents.loaded, Record) else ""
    lines = [f"{path}: {contents.kind}, {contents.size:,} bytes{pickled}{others}"]
    if contents.card is not None:
        card = contents.card.model_dump(mode="json", exclude_none=True, exclude={"tensors", "versions"})
        lines += [f"card: {name}: {brief(value)}" for name, value in card.items() if value not in ({}, [], (), False)]
    return lines


def recognised_line(top: Place) -> str | None:
    """Say what network one of the sets of tensors is by its names and shapes; None where it is none that is known."""
    for place in top.sets()[:_ENTRIES]:
        try:
            found = recognise(place.tensors())
        except ArchitectureError:
            continue
        if found is not None:
            return f"recognised by its tensors: {shown(found.architecture)}"
    return None


def sets_table(top: Place) -> Table:
    """Tabulate the sets of tensors; sets that differ by numbers in their keys alone share a row."""
    rows: dict[tuple[str, int], list[Place]] = {}
    for place in top.sets():
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", place.path)
        rows.setdefault((pattern, len(place.own_tensors()) if pattern == place.path else -1), []).append(place)
    table = plain_table(
        "key",
        "tensors",
        "parameters",
        "types",
        "first weight",
        "last weight",
        left=("types", "first weight", "last weight"),
    )
    for (pattern, _), places in rows.items():
        tensors = places[0].own_tensors()
        numbers = [len(place.own_tensors()) for place in places]
        parameters = [sum(one.numel() for one in place.own_tensors().values()) for place in places]
        name = shown(places[0].path or TOP) if len(places) == 1 else f"{shown(pattern)} ({len(places)} of them)"
        weights = [one for one in tensors.items() if one[1].dim() > 1] or [*tensors.items()]  # no biases, no counters
        types = dict.fromkeys(_dtype(one) for one in tensors.values())
        table.add_row(
            name,
            f"{sum(numbers):,}",
            f"{sum(parameters):,}",
            ", ".join(types),
            described(*weights[0]),
            described(*weights[-1]),
        )
    return table


def tensors_table(place: Place) -> Table:
    """Tabulate all tensors of a set."""
    table = plain_table("name", "shape", "type", left=("shape", "type"))
    for name, tensor in place.tensors().items():
        table.add_row(shown(name), _shape(tensor), _dtype(tensor))
    return table


def described(name: str, tensor: Tensor) -> str:
    """Write the name and shape of a tensor."""
    return f"{shown(name)} {_shape(tensor)}"


def other_entries(loaded: Any, top: Place) -> list[str]:
    """List what is at the top of a file beside sets of weights, with short values."""
    entries = loaded if isinstance(loaded, Mapping) else {}
    if isinstance(loaded, Record):
        entries = {key: value for key, value in loaded.attributes.items() if not key.startswith("_")}
    keys = [key for key, value in entries.items() if not isinstance(value, Tensor) and not _has_weights(top, key)]
    lines = [f"{shown(str(key))}: {brief(entries[key])}" for key in keys[:_ENTRIES]]
    return [*lines, f"and {len(keys) - _ENTRIES} more"] if len(keys) > _ENTRIES else lines


def brief(value: Any) -> str:
    """Write a value in a few words, however large it is."""
    text = shown(_brief(value, 0))
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."


def _brief(value: Any, depth: int) -> str:
    if isinstance(value, Tensor):
        return f"tensor {_shape(value)}" if value.numel() != 1 else f"{value.item():g}"
    if isinstance(value, str):
        return repr(value[:_CHARACTERS])
    if value is None or isinstance(value, (bool, int, float, complex)):
        return repr(value) if not isinstance(value, int) or value.bit_length() < 200 else "a large number"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Record):
        named = {key: part for key, part in value.attributes.items() if not key.startswith("_")}
        return f"{value.kind}({_inside(named, depth) if named else _elements(value.arguments, depth)})"
    if isinstance(value, Mapping):
        return f"{{{_inside(value, depth)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{_elements(value, depth)}]"
    return type(value).__name__


def _inside(entries: Mapping[Any, Any], depth: int) -> str:
    if depth == _DEEPEST:
        return "..."
    parts = [f"{str(key)[:_CHARACTERS]}={_brief(entries[key], depth + 1)}" for key in list(entries)[:_WIDTH]]
    return ", ".join([*parts, *["..."] * (len(entries) > _WIDTH)])


def _elements(values: Any, depth: int) -> str:
    if depth == _DEEPEST:
        return "..."
    parts = [_brief(value, depth + 1) for value in values[:_WIDTH]]
    return ", ".join([*parts, *["..."] * (len(values) > _WIDTH)])


def _has_weights(top: Place, key: Any) -> bool:
    return top.at(str(key)) is not None


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
