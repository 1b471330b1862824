"""Write a network in the layout of another program's file, so that this program loads it: keys, names and types.

The smallest example is an upscaler whose file holds ``{"params_ema": {"body.0.weight": ...}}``: its child, written
beside it, holds the same keys, and other numbers.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depfuse.errors import CheckpointError, DepfuseWarning
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.fitting import COUNTER
from depfuse.io.recognising import recognised
from depfuse.io.weights import Place


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a network are in a file.

    Attributes
    ----------
    keys
        Name in the network -> keys from the top of the file.
    types
        Name in the network -> type of the file's numbers.
    described
        What the file says of its network beside the tensors, see `Checkpoint`.
    """

    keys: Mapping[str, tuple[str, ...]]
    types: Mapping[str, torch.dtype]
    described: Mapping[str, Any] = field(default_factory=dict)

    def content(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arrange the tensors of such a network as the file has them."""
        content: dict[str, Any] = dict(self.described)
        for name, (*outer, last) in self.keys.items():
            inner = content
            for key in outer:
                inner = inner.setdefault(key, {})
            inner[last] = state[name].detach().to("cpu", self.types[name]).contiguous().clone()
        return content


def layout_of(
    path: Path, key: str | None, own: Mapping[str, Tensor], written: Mapping[str, str] | None = None
) -> Layout:
    """Find where the tensors of a network are in its file.

    Parameters
    ----------
    path, key
        The file, and where in it the weights are, as `read_checkpoint` takes them.
    own, written
        The state dict of the file's network, and other names in files, as `Checkpoint.fitted_to` takes them.

    Raises
    ------
    CheckpointError
        Not every tensor of the network is in the file as it is in the network.
    """
    read = read_checkpoint(path, key)
    places: dict[int, list[Place]] = {}  # several where one tensor has several names
    for place in [] if read.weights is None else _top(read.weights).places():
        if place.tensor is not None:
            places.setdefault(id(place.tensor), []).append(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)  # said where the network was read
        state = recognised(read).fitted_to(own, written).state
    other = [
        name
        for name, tensor in own.items()
        if not name.endswith(COUNTER) and (id(state.get(name)) not in places or state[name].shape != tensor.shape)
    ]
    if other or read.layout != "torch":
        what = f"{other[0]} is" if other else "its linear weights are"
        raise CheckpointError(
            f"a child cannot be written in the layout of {path}, where {what} in another form than in the network: give"
            " a name that ends in .safetensors"
        )
    found = {name: state[name] for name in own if id(state.get(name)) in places}
    sets = Counter(place.own_set.path for tensor in found.values() for place in places[id(tensor)])
    keys = {}
    for name, tensor in found.items():
        likeness = [(sets[place.own_set.path], _common_parts(place.path, name)) for place in places[id(tensor)]]
        keys[name] = _keys(places[id(tensor)][likeness.index(max(likeness))])
    return Layout(keys, {name: tensor.dtype for name, tensor in found.items()}, read.described)


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors in dicts by torch.save; the bytes do not depend on the name of the file."""
    with path.open("wb") as file:
        torch.save(dict(content), file)


def _common_parts(first: str, second: str) -> int:
    """Count the parts of two dotted names that are the same from the end on."""
    pairs = zip(reversed(first.split(".")), reversed(second.split(".")), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _top(place: Place) -> Place:
    return place if place.above is None else _top(place.above)


def _keys(place: Place) -> tuple[str, ...]:
    """List the keys of the dicts that lead to a place; parts of a dotted name are one key."""
    if place.above is None:
        return ()
    outer = place.above.own_set
    return (*_keys(outer), place.path.removeprefix(outer.path).removeprefix("."))
