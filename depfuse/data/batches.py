"""Calibration data of any kind as a loader: tensors, data sets, data loaders, generators."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse.data.inputs import count_samples, join_samples, map_tensors, take_samples
from depfuse.data.loader import Loader
from depfuse.data.memory import GIBIBYTE, calibration_room
from depfuse.data.objects import Attributes, OnObjects, has_attributes
from depfuse.data.sources import batches_of_source
from depfuse.data.tensors import Split
from depfuse.errors import DataError, DepfuseWarning
from depfuse.networks.copying import fit_example
from depfuse.networks.forward import Call
from depfuse.networks.leaves import tensors_in
from depfuse.tasks.batch_inputs import Signature, as_tensor, split_batch
from depfuse.tasks.label_kinds import are_classes
from depfuse.text import counted


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
    for batch in batches_of_source(source, model, images, batch_size, seed, called=call is not None, scored=scored):
        collected.add(batch)
        if collected.full:
            break
    split = collected.split()
    if len(split) < 2:
        few = f"{counted(len(split), 'calibration sample')} {'is' if len(split) == 1 else 'are'} too few for statistics"
        raise DataError(f"{few}: give at least 2, better 2000")
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
        if self.inputs and _kinds(inputs) != _kinds(self.inputs[0]):
            raise DataError(
                f"batch {len(self.inputs) + 1} of the data has shape {_shapes(inputs)}, and the first"
                f" {_shapes(self.inputs[0])}: give batches of inputs, or inputs and labels of all samples as a pair,"
                " (inputs, labels), with as many of each"
            )
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


def _kinds(inputs: Any) -> list[tuple[int, bool]]:
    """Tell inputs of other kinds: their number, axes, and whether they are numbers of things."""
    leaves = tensors_in(inputs)
    return [(leaf.dim(), leaf.dtype in (torch.int32, torch.int64)) for leaf in leaves]


def _shapes(inputs: Any) -> str:
    return " and ".join(str(tuple(leaf.shape)) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


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
