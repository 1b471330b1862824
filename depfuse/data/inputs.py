"""Inputs of networks, sample by sample: a tensor (N, ...), several in a structure, parts of several shapes, files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from depfuse.data.stored_images import StoredImages

Index = slice | Tensor


@dataclass(frozen=True, eq=False)
class Ragged:
    """Samples whose shapes differ from part to part: sentences that were padded batch by batch, for instance.

    Attributes
    ----------
    parts
        Tensors, or structures of tensors, with the samples along their first axis.
    """

    parts: Sequence[Any]

    def take(self, index: Index) -> Ragged:
        """Select samples by number, in that order."""
        sizes = [count_samples(part) for part in self.parts]
        part_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        place = torch.cat([torch.arange(size) for size in sizes])
        index = index if isinstance(index, slice) else index.cpu()
        owners, places = torch.unique_consecutive(part_of[index], return_counts=True), place[index]
        chosen = zip(owners[0].tolist(), torch.split(places, owners[1].tolist()), strict=True)
        joined = join_samples([take_samples(self.parts[part], rows) for part, rows in chosen])
        return joined if isinstance(joined, Ragged) else Ragged([joined])


def count_samples(inputs: Any) -> int:
    """Count the samples of inputs."""
    if isinstance(inputs, StoredImages):
        return len(inputs)
    if isinstance(inputs, Ragged):
        return sum(map(count_samples, inputs.parts))
    return len(next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)))


def take_samples(inputs: Any, index: Index) -> Any:
    """Select samples by number (n,), or a range of them."""
    if isinstance(inputs, (StoredImages, Ragged)):
        return inputs.take(index)
    return tree_map(lambda leaf: _taken(leaf, index) if isinstance(leaf, Tensor) else leaf, inputs)


def map_tensors(function: Any, inputs: Any) -> Any:
    """Apply a function to every tensor of inputs."""
    if isinstance(inputs, Ragged):
        return Ragged([map_tensors(function, part) for part in inputs.parts])
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, inputs)


def split_samples(inputs: Any, size: int) -> Iterator[Any]:
    """Divide inputs of one shape into parts of `size` samples, the last of them smaller."""
    if isinstance(inputs, Tensor):
        yield from torch.split(inputs, size)
        return
    for start in range(0, count_samples(inputs), size):
        yield take_samples(inputs, slice(start, start + size))


def of_one_shape(inputs: Any) -> Iterator[tuple[Any, int]]:
    """Divide inputs into those that a network can be given at once, each with the number of its samples."""
    for part in inputs.parts if isinstance(inputs, Ragged) else [inputs]:
        yield part, count_samples(part)


def join_samples(batches: Sequence[Any]) -> Any:
    """Join batches along their first axis: one structure where their shapes agree, else `Ragged`."""
    parts: list[list[Any]] = []
    for batch in batches:
        if parts and _shapes(parts[-1][0]) == _shapes(batch):
            parts[-1].append(batch)
        else:
            parts.append([batch])
    joined = [tree_map(_joined, part[0], *part[1:]) for part in parts]
    return joined[0] if len(joined) == 1 else Ragged(joined)


def by_shape(inputs: Ragged) -> list[Tensor]:
    """List the numbers (n,) of the samples of each shape, the shapes in the order in which they come."""
    found: dict[str, list[Tensor]] = {}
    start = 0
    for part in inputs.parts:
        found.setdefault(str(_shapes(part)), []).append(torch.arange(start, start + count_samples(part)))
        start += count_samples(part)
    return [torch.cat(numbers) for numbers in found.values()]


def is_pictures(inputs: Any) -> bool:
    """Tell whether inputs are images (N, C, H, W) of more than one pixel a side."""
    return _on_grid(inputs, 2)


def is_volumes(inputs: Any) -> bool:
    """Tell whether inputs are volumes (N, C, D, H, W) of more than one voxel a side."""
    return _on_grid(inputs, 3)


def _on_grid(inputs: Any, axes: int) -> bool:
    return isinstance(inputs, (Tensor, StoredImages)) and len(inputs.shape) == axes + 2 and min(inputs.shape[2:]) > 1


def _taken(leaf: Tensor, index: Index) -> Tensor:
    return leaf[index if isinstance(index, slice) else index.to(leaf.device)]


def _joined(first: Any, *others: Any) -> Any:
    return torch.cat([first, *others]) if isinstance(first, Tensor) else first


def _shapes(batch: Any) -> list[Any]:
    return [(tuple(leaf.shape[1:]), leaf.dtype) if isinstance(leaf, Tensor) else None for leaf in tree_leaves(batch)]
