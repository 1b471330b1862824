"""Batches of whatever calibration data are: arrays, data sets, or what yields batches or samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from depfuse.data.loader import epoch_seed
from depfuse.data.samples import collate, collated, is_sample, runs_on, takes_several
from depfuse.data.tensors import DataSet, Split
from depfuse.errors import DataError
from depfuse.tasks.batch_inputs import as_tensor, kind_of


def batches_of_source(
    source: Any, model: nn.Module, images: int, batch_size: int, seed: int, *, called: bool, scored: bool
) -> Iterator[Any]:
    """Yield batches of whatever calibration data are."""
    if isinstance(source, (str, Path)):
        raise DataError(
            f"{source} is a name or path, and data are wanted: give"
            f" {_loader_of(f'load_data({str(source)!r})', images, scored)}"
        )
    if isinstance(source, (DataSet, Split)):
        raise DataError(f"a {type(source).__name__} is no data yet: give {_loader_of('data', images, scored)}")
    source = _with_listed_labels(source)
    if not isinstance(source, Tensor) and hasattr(source, "__array__"):  # of pandas, h5py and others
        source = source if isinstance(source, np.ndarray) else np.asarray(source)
    source = as_tensor(source) if isinstance(source, Tensor) else source
    if isinstance(source, (Tensor, np.ndarray)):
        yield from _drawn(_count(source), images, batch_size, seed, lambda index: _rows(source, index))
    elif isinstance(source, Mapping) or _is_whole(source, model, called=called, scored=scored):
        parts = source if isinstance(source, Mapping) else dict(enumerate(source))
        whole = {key: value if isinstance(value, np.ndarray) else as_tensor(value) for key, value in parts.items()}
        counts = {_count(value) for value in whole.values()}
        if len(counts) != 1:
            raise DataError(f"the calibration data hold arrays of {sorted(counts)} samples: give as many of each")

        def take(index: Tensor) -> Any:
            rows = {key: _rows(value, index) for key, value in whole.items()}
            return rows if isinstance(source, Mapping) else tuple(rows.values())

        yield from _drawn(counts.pop(), images, batch_size, seed, take)
    elif isinstance(source, IterableDataset):
        yield from collated(source, batch_size)
    elif isinstance(source, Dataset) or (
        isinstance(source, (list, tuple)) and source and is_sample(source[0], model, called=called, listed=True)
    ):
        yield from _drawn(
            len(cast(Sized, source)),
            images,
            batch_size,
            seed,
            lambda index: collate([source[n] for n in index.tolist()]),
        )
    elif isinstance(source, Iterable):
        batches = iter(source)
        first = list(itertools.islice(batches, 1))
        one = bool(first) and is_sample(first[0], model, called=called, listed=False)
        rest = itertools.chain(first, batches)
        yield from collated(rest, batch_size) if one else rest
    else:
        raise DataError(f"calibration data are {kind_of(source)}: give a tensor, a data set, or what yields batches")


def _loader_of(data: str, images: int, scored: bool) -> str:
    """Write the call that makes a loader of a data set of depfuse's."""
    return (
        "Loader(data.test, data.preprocessing), after data = load_data(...)"
        if scored
        else f"calibration_loader({data}, {images})"
    )


def _with_listed_labels(source: Any) -> Any:
    """Make an array of the labels in a pair of inputs and a list of whole numbers."""
    if not (isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], (Tensor, np.ndarray))):
        return source
    inputs, labels = source
    listed = isinstance(labels, (list, tuple)) and len(labels) == _count(inputs) > 0
    return (inputs, np.array(labels)) if listed and all(type(label) is int for label in labels) else source


def _count(whole: Tensor | np.ndarray) -> int:
    return len(whole) if whole.ndim else 0


def _rows(whole: Tensor | np.ndarray, index: Tensor) -> Tensor:
    """Select rows; of an array that is mapped from a file no others are read."""
    return whole[index] if isinstance(whole, Tensor) else as_tensor(whole[index.numpy()])


def _is_whole(source: Any, model: nn.Module, *, called: bool, scored: bool) -> bool:
    """Tell whether a tuple holds arrays of all samples, inputs and labels for instance: not each of them is a batch.

    Targets may be of the inputs' shape, as pictures of a network that gives pictures are. Of two arrays that could
    both be a batch the second are labels where labels are wanted, or where the two are not parts of one tensor, as
    `split` gives them.
    """
    if called or not isinstance(source, tuple) or len(source) < 2:
        return False
    if not all(isinstance(part, (Tensor, np.ndarray)) and part.ndim for part in source):
        return False
    if len({len(part) for part in source}) > 1:
        return False
    if len(source) == 2 and not takes_several(model) and (scored or not _are_parts(*source)):
        return True
    return not all(runs_on(model, as_tensor(part[:2])) for part in source)


def _are_parts(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> bool:
    """Tell whether two arrays are views of the same memory."""
    return _memory(first) == _memory(second)


def _memory(part: Tensor | np.ndarray) -> int:
    if isinstance(part, np.ndarray):
        return id(part if part.base is None else part.base)
    return as_tensor(part).untyped_storage().data_ptr()


def _drawn(count: int, images: int, batch_size: int, seed: int, take: Any) -> Iterator[Any]:
    """Yield batches of all samples in order, or of some drawn at random where there are more than wanted."""
    order = torch.arange(count)
    if count > images:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch_seed(seed, 0)))[:images]
    for index in order.split(batch_size) if count else ():  # type: ignore[no-untyped-call]
        yield take(index)
