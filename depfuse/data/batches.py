"""Calibration data of any kind as a loader: tensors, data sets, data loaders, generators."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, IterableDataset, default_collate

from depfuse.data.inputs import count_samples, join_samples, map_tensors, take_samples
from depfuse.data.loader import Loader, epoch_seed
from depfuse.data.memory import GIBIBYTE, calibration_room
from depfuse.data.objects import Attributes, OnObjects, has_attributes
from depfuse.data.tensors import Split
from depfuse.errors import DataError, DepfuseWarning
from depfuse.networks.copying import fit_example
from depfuse.networks.forward import Call, run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.batch_inputs import Signature, as_tensor, kind_of, split_batch
from depfuse.tasks.label_kinds import are_classes
from depfuse.text import first_line


def as_loader(
    source: Any,
    model: nn.Module,
    *,
    images: int = 2000,
    batch_size: int = 250,
    call: Call | None = None,
    seed: int = 0,
    room: float | None = None,
    scored: bool = False,
) -> Loader:
    """Collect calibration data from whatever gives it, in one pass.

    Parameters
    ----------
    source
        A `Loader`, taken as it is; a tensor or array (N, ...), a list, a mapping or a tuple of them, such as inputs and
        labels; a `Dataset`; or anything that yields batches or samples: a `DataLoader`, a generator, also an endless
        one. Of a tensor, array, list or data set with more samples than wanted some are drawn at random, and only
        these are read; of all else the first are taken, and no more is read.
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
    scored
        Whether outputs are scored by the labels: those that are no classes of images are kept then, too.

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
    call = None if call is None else OnObjects(call)
    room = calibration_room() if room is None else room
    dtype = next((tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()), None)
    collected = _Collected(images, Signature.of(model), call, room, dtype, scored)
    for batch in _batches(source, model, images, batch_size, seed, called=call is not None, scored=scored):
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
    dtype: torch.dtype | None
    scored: bool
    inputs: list[Any] = field(default_factory=list)
    labels: list[Tensor | None] = field(default_factory=list)
    count: int = 0
    size: int = 0

    def add(self, batch: Any) -> None:
        """Take the samples of a batch, as many as are wanted still."""
        inputs, labels = (_called_structure(batch), None) if self.call else split_batch(batch, self.takes)
        count = _length(inputs)
        if count == 0:
            return
        if count > self.wanted - self.count:
            kept = slice(0, self.wanted - self.count)
            inputs, labels = take_samples(inputs, kept), None if labels is None else labels[kept]
            count = self.wanted - self.count
        _check_finite(inputs, self.count)
        # A data loader may use its memory again for the next batch.
        inputs = map_tensors(self._own, inputs)
        self.inputs.append(inputs)
        self.labels.append(self._kept(labels, count))
        self.count += count
        self.size += sum(leaf.nbytes for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
        if self.size > self.room and self.count < self.wanted:
            warnings.warn(
                f"{self.count} of {self.wanted} calibration samples are used: they take {self.size / GIBIBYTE:.1f} "
                f"GiB, and {self.room / GIBIBYTE:.1f} are for them",
                DepfuseWarning,
                stacklevel=2,
            )

    def _kept(self, labels: Tensor | None, count: int) -> Tensor | None:
        """Copy labels, where there is one for each sample: classes, or whatever outputs are scored by."""
        if labels is None or len(labels) != count:
            return None
        return labels.clone() if self.scored or are_classes(labels) else None

    def _own(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None
        return torch.clone(tensor.detach().to("cpu", dtype))

    @property
    def full(self) -> bool:
        """Whether no more samples are wanted, or there is no room for more."""
        return self.count >= self.wanted or self.size > self.room

    def split(self) -> Split:
        """Join what was taken."""
        if not self.inputs:
            raise DataError("the calibration data hold no batch: give at least 2 samples, better 2000")
        known = [labels for labels in self.labels if labels is not None]
        shapes = {tuple(labels.shape[1:]) for labels in known}
        if len(shapes) > 1:
            raise DataError(f"labels have shapes {sorted(shapes)} in different batches: give labels of one shape")
        labels = torch.cat(known) if len(known) == len(self.labels) else None
        return Split(join_samples(self.inputs), labels)


def _check_finite(inputs: Any, first: int) -> None:
    """Raise `DataError` where a value is not finite; `first` is the number of the first sample.

    Of several inputs only NaN counts: masks of attention hold minus infinity.
    """
    sound = torch.isfinite if isinstance(inputs, Tensor) else lambda leaf: ~leaf.isnan()
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(sound(leaf).all()):
            broken = (~sound(leaf)).reshape(len(leaf), -1).any(1)
            number = first + int(broken.nonzero()[0, 0])
            raise DataError(
                f"sample {number} of the data holds NaN or infinite values ({int(broken.sum())} of {len(leaf)} in its"
                " batch do): leave such samples out, or mend them"
            )


def _batches(
    source: Any, model: nn.Module, images: int, batch_size: int, seed: int, *, called: bool, scored: bool
) -> Iterator[Any]:
    """Yield batches of whatever calibration data are."""
    if isinstance(source, (str, Path)):
        raise DataError(
            f"{source} is a name or path, and calibration data are wanted: give "
            f"calibration_loader(load_data({str(source)!r}), {images})"
        )
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
        yield from _collated(source, batch_size)
    elif isinstance(source, Dataset) or (
        isinstance(source, (list, tuple)) and source and _is_sample(source[0], model, called=called, listed=True)
    ):
        yield from _drawn(
            len(cast(Sized, source)),
            images,
            batch_size,
            seed,
            lambda index: _collate([source[n] for n in index.tolist()]),
        )
    elif isinstance(source, Iterable):
        batches = iter(source)
        first = list(itertools.islice(batches, 1))
        one = bool(first) and _is_sample(first[0], model, called=called, listed=False)
        rest = itertools.chain(first, batches)
        yield from _collated(rest, batch_size) if one else rest
    else:
        raise DataError(f"calibration data are {kind_of(source)}: give a tensor, a data set, or what yields batches")


def _count(whole: Tensor | np.ndarray) -> int:
    return len(whole) if whole.ndim else 0


def _rows(whole: Tensor | np.ndarray, index: Tensor) -> Tensor:
    """Select rows; of an array that is mapped from a file no others are read."""
    return whole[index] if isinstance(whole, Tensor) else as_tensor(whole[index.numpy()])


def _collated(samples: Iterable[Any], batch_size: int) -> Iterator[Any]:
    """Stack single samples to batches."""
    left = iter(samples)
    while found := list(itertools.islice(left, batch_size)):
        yield _collate(found)


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
    if len(source) == 2 and not _several(model) and (scored or not _are_parts(*source)):
        return True
    return not all(_runs(model, as_tensor(part[:2])) for part in source)


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


def _is_sample(first: Any, model: nn.Module, *, called: bool, listed: bool) -> bool:
    """Tell whether this is a single sample: the network runs on it as a batch of one, and not as it is.

    Parameters
    ----------
    first
        The first of what the data hold or yield.
    model, called
        The network, and whether it is run by a function of the user's, who gives batches.
    listed
        Whether the data are a list, of which images (C, H, W) are samples whatever they are of.

    Raises
    ------
    DataError
        It is the name of a file.
    """
    if isinstance(first, (str, Path)):
        raise DataError(
            f"calibration data are names of files, such as {first}: give their tensors, or load a folder or list of"
            " them by calibration_loader(load_data(...))"
        )
    if called:
        return False
    if isinstance(first, Image.Image):
        return True
    if isinstance(first, (Tensor, np.ndarray)):
        return _is_one(as_tensor(first), model, listed=listed)
    if not isinstance(first, (tuple, list, Mapping)) or not first:
        return False
    if not isinstance(first, Mapping) and isinstance(first[0], (Tensor, np.ndarray)) and not _several(model):
        return _is_one(as_tensor(first[0]), model, listed=listed)
    return not _runs(model, first) and _runs(model, _collate([first]))


def _is_one(first: Tensor, model: nn.Module, *, listed: bool) -> bool:
    """Tell whether a tensor is one input of a network, and no batch."""
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first.dim() == 3 and convolution is not None:
        # It takes a single image (C, H, W), too, which is no batch of C rows.
        return listed or (len(first) == convolution.in_channels and _runs(model, first[None]))
    return (first.dim() < 2 or not _runs(model, first)) and _runs(model, first[None])


def _several(model: nn.Module) -> bool:
    return len(Signature.of(model).required) > 1


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


def _called_structure(batch: Any) -> Any:
    """Batches as the user's function is given them, of any class: its tensors by attribute."""
    found = _structure(batch)
    return Attributes.of(batch, _structure) if found is batch and has_attributes(batch) else found


def _length(inputs: Any) -> int:
    """Count the samples of a batch, whose tensors have one first axis.

    Raises
    ------
    DataError
        There is no tensor, or they have several.
    """
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    if len(sizes) != 1:
        found = f"tensors of {sorted(sizes)} samples" if sizes else "no tensor"
        raise DataError(f"a batch of the calibration data holds {found}: the first axis of each must count its samples")
    return count_samples(inputs)
