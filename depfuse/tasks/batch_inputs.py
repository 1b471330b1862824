"""How a batch is given to a network: what of it are inputs, and what are labels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depfuse.errors import DataError
from depfuse.networks.copying import unwrap
from depfuse.networks.forward import Example

LABELS = ("label", "labels", "target", "targets", "y")
INPUTS = (
    "x",
    "image",
    "images",
    "img",
    "pixel_values",
    "input",
    "inputs",
    "input_ids",
    "input_values",
    "data",
    "features",
)
BY_CALL = "say how a network is run on it: call=lambda model, batch: model(...)"


@dataclass(frozen=True)
class Signature:
    """What a network's `forward` takes.

    Attributes
    ----------
    required
        Names of the parameters that must be given.
    names
        Names of all parameters, in order.
    open
        Whether it takes keywords of any name.
    by_name
        Whether the first must be given by its name.
    """

    required: tuple[str, ...]
    names: tuple[str, ...]
    open: bool
    by_name: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> Signature:
        """Read the parameters of a network's `forward`; of one that has no signature, a single input."""
        try:
            parameters = inspect.signature(unwrap(model).forward).parameters.values()
        except (TypeError, ValueError):
            return cls(("input",), ("input",), open=False)
        plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return cls(
            tuple(p.name for p in plain if p.default is p.empty),
            tuple(p.name for p in plain),
            any(p.kind == p.VAR_KEYWORD for p in parameters),
            bool(plain) and plain[0].kind == inspect.Parameter.KEYWORD_ONLY,
        )


def split_batch(batch: Any, takes: Signature) -> tuple[Example, Tensor | None]:
    """Divide a batch into the inputs of a network and the labels, where there are any.

    A tensor or array is the input. Of a tuple or list the first entry is, or as many as `forward` requires, or all of a
    tuple in its first place, as in ((image, row), label), where `forward` takes them; of a mapping or data class the
    entries that `forward` has parameters for, else the only one that is no label, or that is called as inputs are
    (`INPUTS`).

    Raises
    ------
    DataError
        The batch holds nothing, or too little, that the network takes.
    """
    inputs, labels = _split(batch, takes)
    if takes.by_name and isinstance(inputs, Tensor):
        return {takes.names[0]: inputs}, labels
    return inputs, labels


def _split(batch: Any, takes: Signature) -> tuple[Example, Tensor | None]:
    if isinstance(batch, (Tensor, np.ndarray)):
        return as_tensor(batch), None
    if is_dataclass(batch) and not isinstance(batch, type):
        batch = {field.name: getattr(batch, field.name) for field in fields(batch)}
    if isinstance(batch, Mapping):
        return _of_mapping(batch, takes), _labels(next((batch[key] for key in LABELS if key in batch), None))
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)) and len(batch) > 0:
        return _of_sequence(batch, takes)
    raise DataError(f"a batch is {kind_of(batch)}, which no network is run on: {BY_CALL}")


def as_tensor(value: Any) -> Tensor:
    """Take a tensor as it is and convert an array.

    Raises
    ------
    DataError
        It is neither, or holds no numbers, or not everywhere.
    """
    if isinstance(value, Tensor):
        if value.is_meta:
            raise DataError("a tensor of the data is on the meta device, where none has values: load it first")
        return value.detach() if value.layout == torch.strided else value.detach().to_dense()
    if isinstance(value, np.ndarray):
        if np.ma.is_masked(value):
            raise DataError("an array of the data has masked entries: fill them, or leave their samples out")
        plain = np.ascontiguousarray(value)
        try:  # torch knows the byte order of this machine alone
            return torch.from_numpy(plain.astype(plain.dtype.newbyteorder("="), copy=False))
        except TypeError as error:
            raise DataError(f"an array of type {value.dtype} holds no numbers that a network takes") from error
    raise DataError(f"a batch holds {kind_of(value)} where a tensor is wanted: {BY_CALL}")


def as_labels(value: Any) -> Tensor:
    """Convert labels (N, ...) of all samples: whole numbers to int64, others to float32.

    Raises
    ------
    DataError
        They are no numbers.
    """
    try:
        given = as_tensor(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    except (DataError, TypeError, ValueError, RuntimeError):
        raise DataError(
            "the labels are no numbers: give a whole number for each sample, 0 for the first output of the networks"
        ) from None
    return _in_one_type(given)


def _of_mapping(batch: Mapping[str, Any], takes: Signature) -> Example:
    keys = [key for key in batch if key not in LABELS and (key in takes.names or takes.open)]
    lacking = [name for name in takes.required if name not in keys]
    if not lacking and keys:
        if keys == [takes.names[0]]:
            return as_tensor(batch[keys[0]])
        return {key: as_tensor(batch[key]) for key in keys if batch[key] is not None}
    inputs = [key for key in batch if key not in LABELS and isinstance(batch[key], (Tensor, np.ndarray))]
    named = [key for key in inputs if key in INPUTS]
    inputs = named if len(inputs) > 1 and len(named) == 1 else inputs
    if len(inputs) == 1 and len(takes.required) <= 1:
        return as_tensor(batch[inputs[0]])
    raise DataError(
        f"a batch holds {', '.join(map(str, batch))}, and the network takes {', '.join(takes.names) or 'nothing'}: "
        f"name them alike, or {BY_CALL}"
    )


def _of_sequence(batch: Sequence[Any], takes: Signature) -> tuple[Example, Tensor | None]:
    count = max(1, len(takes.required))
    first, rest = batch[0], list(batch[1:])
    if count > 1 and isinstance(first, Sequence) and len(first) >= count:  # ((image, row), label)
        return tuple(map(as_tensor, first[:count])), _labels(next(iter(rest), None))
    if len(batch) < count:
        raise DataError(
            f"a batch has {len(batch)} entries, and the network takes {count} ({', '.join(takes.required)}): {BY_CALL}"
        )
    if count > 1:
        return tuple(map(as_tensor, batch[:count])), _labels(next(iter(batch[count:]), None))
    if isinstance(first, Mapping):
        return _of_mapping(first, takes), _labels(next(iter(rest), None))
    if isinstance(first, (tuple, list)) and first:  # (image,), or views of one image
        if _are_several(first, takes):
            return tuple(map(as_tensor, first)), _labels(next(iter(rest), None))
        first = first[0]
    return as_tensor(first), _labels(next(iter(rest), None))


def _are_several(first: Sequence[Any], takes: Signature) -> bool:
    """Tell whether what stands in the place of one input are several, of which all but one have a default.

    Views of one image have its shape.
    """
    if not 1 < len(first) <= len(takes.names) or not all(isinstance(one, (Tensor, np.ndarray)) for one in first):
        return False
    return len({tuple(one.shape) for one in first}) > 1


def _labels(value: Any) -> Tensor | None:
    """Labels (N, ...) where that is what a value is: whole numbers in int64, others in float32."""
    found = as_tensor(value) if isinstance(value, np.ndarray) and value.dtype.kind in "iufb" else value
    return _in_one_type(found) if isinstance(found, Tensor) and found.dim() and not found.is_complex() else None


def _in_one_type(labels: Tensor) -> Tensor:
    return labels.detach().float() if labels.is_floating_point() else labels.detach().long()


def kind_of(value: Any) -> str:
    """Name the class of a value, with its article."""
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"
