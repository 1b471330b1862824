"""Calibration data of any kind as a loader: tensors, data sets, data loaders, generators."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, IterableDataset, default_collate

from depfuse.data.inputs import count_samples, join_samples, map_tensors, take_samples
from depfuse.data.loader import Loader, epoch_seed
from depfuse.data.memory import GIBIBYTE, calibration_room
from depfuse.data.tensors import Split
from depfuse.errors import DataError, DepfuseWarning
from depfuse.networks.copying import fit_example
from depfuse.networks.forward import Call, run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.batch_inputs import Signature, as_tensor, split_batch
from depfuse.text import first_line


def as_loader(
    source: Any,
    model: nn.Module,
    *,
    images: int = 2000,
    batch_size: int = 250,
    call: Call | None = None,
    seed: int = 0,
    room: int | None = None,
) -> Loader:
    """Collect calibration data from whatever gives it, in one pass.

    Parameters
    ----------
    source
        A `Loader`, taken as it is; a tensor or array (N, ...), a list of them, a mapping of them; a `Dataset`; or
        anything that yields batches: a `DataLoader`, a generator, also an endless one. Of a tensor, list or data set
        with more samples than wanted some are drawn at random, of all else the first are taken.
    model
        The network that is run on batches (see `split_batch`); data are moved to its device and its type.
    images
        How many samples are wanted.
    batch_size
        Largest number of samples in a batch of the loader.
    call
        How the network is run on a batch: `call(model, batch)`. A batch has the structure of those given then.
    seed
        Of the random choice.
    room
        How many bytes the samples may take; a quarter of the memory that is free where None. Of more than that the
        first are kept, with a `DepfuseWarning`.

    Raises
    ------
    DataError
        There are fewer than two samples, or a batch is not what the network takes.
    """
    if isinstance(source, Loader):
        if call is None:
            return source
        split = replace(source.split, call=call)
        return Loader(split, source.preprocessing, batch_size=source.batch_size, device=source.device)
    collected = _Collected(images, Signature.of(model), call, calibration_room() if room is None else room)
    for batch in _batches(source, model, images, batch_size, seed, called=call is not None):
        collected.add(batch)
        if collected.full:
            break
    split = collected.split()
    if len(split) < 2:
        raise DataError(f"{len(split)} calibration samples are too few for statistics: give at least 2, better 2000")
    inputs = map_tensors(lambda leaf: fit_example(leaf, model), split.images)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    return Loader(Split(inputs, split.labels, call), batch_size=batch_size, device=device)


@dataclass
class _Collected:
    """Samples taken from batches, until there are enough of them or no more room."""

    wanted: int
    takes: Signature
    call: Call | None
    room: float
    inputs: list[Any] = field(default_factory=list)
    labels: list[Tensor | None] = field(default_factory=list)
    count: int = 0
    size: int = 0

    def add(self, batch: Any) -> None:
        """Take the samples of a batch, as many as are wanted still."""
        inputs, labels = (_structure(batch), None) if self.call else split_batch(batch, self.takes)
        count = _length(inputs)
        if count > self.wanted - self.count:
            kept = slice(0, self.wanted - self.count)
            inputs, labels = take_samples(inputs, kept), None if labels is None else labels[kept]
            count = self.wanted - self.count
        # A data loader may use its memory again for the next batch.
        inputs = map_tensors(lambda leaf: leaf.detach().cpu().clone(), inputs)
        self.inputs.append(inputs)
        self.labels.append(labels if labels is not None and len(labels) == count else None)
        self.count += count
        self.size += sum(leaf.nbytes for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
        if self.size > self.room and self.count < self.wanted:
            warnings.warn(
                f"{self.count} of {self.wanted} calibration samples are used: they take {self.size / GIBIBYTE:.1f} "
                f"GiB, and {self.room / GIBIBYTE:.1f} are for them",
                DepfuseWarning,
                stacklevel=2,
            )

    @property
    def full(self) -> bool:
        """Whether no more samples are wanted, or there is no room for more."""
        return self.count >= self.wanted or self.size > self.room

    def split(self) -> Split:
        """Join what was taken."""
        if not self.inputs:
            raise DataError("the calibration data hold no batch: give at least 2 samples, better 2000")
        known = [labels for labels in self.labels if labels is not None]
        labels = torch.cat(known) if len(known) == len(self.labels) else None
        return Split(join_samples(self.inputs), labels)


def _batches(source: Any, model: nn.Module, images: int, batch_size: int, seed: int, *, called: bool) -> Iterator[Any]:
    """Yield batches of whatever calibration data are."""
    if isinstance(source, (str, Path)):
        raise DataError(
            f"{source} is a name or path, and calibration data are wanted: give "
            f"calibration_loader(load_data({str(source)!r}), {images})"
        )
    if isinstance(source, (Tensor, np.ndarray)):
        whole = as_tensor(source)
        yield from _drawn(len(whole) if whole.dim() else 0, images, batch_size, seed, lambda index: whole[index])
    elif isinstance(source, Mapping):
        named = {key: as_tensor(value) for key, value in source.items()}
        yield from _drawn(_length(named), images, batch_size, seed, lambda index: take_samples(named, index))
    elif isinstance(source, IterableDataset):
        samples = iter(source)
        while found := list(itertools.islice(samples, batch_size)):
            yield _collate(found)
    elif isinstance(source, Dataset) or _is_samples(source, model, called=called):
        yield from _drawn(
            len(source), images, batch_size, seed, lambda index: _collate([source[n] for n in index.tolist()])
        )
    elif isinstance(source, Iterable):
        yield from source
    else:
        raise DataError(
            f"calibration data are a {type(source).__name__}: give a tensor, a data set, or what yields batches"
        )


def _drawn(count: int, images: int, batch_size: int, seed: int, take: Any) -> Iterator[Any]:
    """Yield batches of all samples in order, or of some drawn at random where there are more than wanted."""
    order = torch.arange(count)
    if count > images:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch_seed(seed, 0)))[:images]
    for index in order.split(batch_size) if count else ():  # type: ignore[no-untyped-call]
        yield take(index)


def _is_samples(source: Any, model: nn.Module, *, called: bool) -> bool:
    """Tell whether a list holds single samples: the network runs on one as a batch, and not on one as it is."""
    if called or not isinstance(source, (list, tuple)) or not source:
        return False
    first = source[0]
    if isinstance(first, Image.Image):
        return True
    if not isinstance(first, (Tensor, np.ndarray)):
        return isinstance(first, (tuple, Mapping)) and not _runs(model, first) and _runs(model, _collate([first]))
    whole = as_tensor(first)
    # A convolution takes a single image (C, H, W), too, which is no batch of C rows.
    images = whole.dim() == 3 and any(isinstance(module, nn.Conv2d) for module in model.modules())
    return images or ((whole.dim() < 2 or not _runs(model, whole)) and _runs(model, whole[None]))


def _runs(model: nn.Module, batch: Any) -> bool:
    try:
        inputs, _ = split_batch(batch, Signature.of(model))
        with torch.no_grad(), evaluating(model):
            run_network(model, fit_example(inputs, model))
    except Exception:  # whatever the user's network raises
        return False
    return True


def _collate(samples: Sequence[Any]) -> Any:
    """Stack samples to a batch, pictures as tensors (C, H, W) in [0, 1].

    Raises
    ------
    DataError
        They have several shapes.
    """
    try:
        return default_collate([_without_pictures(sample) for sample in samples])
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"samples of the calibration data do not make a batch ({first_line(error)}): give them one shape, or a "
            "DataLoader with a collate function"
        ) from error


def _without_pictures(value: Any) -> Any:
    if isinstance(value, Image.Image):
        pixels = torch.from_numpy(np.array(value if value.mode in ("L", "RGB") else value.convert("RGB")))
        return (pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)).float() / 255
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_without_pictures, value))
    if isinstance(value, dict):
        return {key: _without_pictures(entry) for key, entry in value.items()}
    return value


def _structure(batch: Any) -> Any:
    """Batches as the user's function is given them: arrays become tensors, mappings dictionaries."""
    if isinstance(batch, np.ndarray):
        return as_tensor(batch)
    if isinstance(batch, Mapping):
        return {key: _structure(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_structure, batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map(_structure, batch))
    return batch


def _length(inputs: Any) -> int:
    """Count the samples of a batch, whose tensors have one first axis.

    Raises
    ------
    DataError
        There is no tensor, or they have several.
    """
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or 0 in sizes:
        found = f"tensors of {sorted(sizes)} samples" if sizes else "no tensor"
        raise DataError(f"a batch of the calibration data holds {found}: the first axis of each must count its samples")
    return count_samples(inputs)
