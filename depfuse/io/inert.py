"""Read any pickle without importing, calling or running anything that it names.

A pickle is a program that may call whatever can be imported. Here it can call a few stand-ins for tensors and arrays,
which collect type, shape and bytes. Every other class or function that it names becomes a kind of `Record`, which
keeps what it is given and does nothing.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from depfuse.errors import CheckpointError
from depfuse.io.sizes import BYTES, TIMES
from depfuse.text import first_line

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
_KINDS = 10_000  # most names of classes and functions in one file

Storages = Callable[[tuple[Any, ...]], Any]


class Record:
    """Inert object of a class that a pickle names: its arguments, its state, and what was put into it.

    Attributes
    ----------
    kind
        Module and name of the class or function.
    arguments
        What it was made from.
    state
        What `__setstate__` or its attributes would have been given; None if nothing.
    entries
        (key, value) of what was set in it as in a dict, (None, value) of what was added as to a list or set.
    """

    kind = ""
    arguments: tuple[Any, ...]
    state: Any
    entries: list[tuple[Any, Any]]

    def __new__(cls, *arguments: Any, **_: Any) -> Record:
        """Keep the arguments; a pickle may take a record, too, for a class."""
        made = object.__new__(cls if isinstance(cls, type) else type(cls))
        made.arguments, made.state, made.entries = arguments, None, []
        return made

    def __call__(self, *arguments: Any, **_: Any) -> Record:  # noqa: D102
        return Record(*arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))

    def append(self, value: Any) -> None:
        """Keep an element of a list."""
        self.entries.append((None, value))

    add = append

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes by name, as far as the state gives them."""
        parts = self.state if isinstance(self.state, (tuple, list)) else (self.state,)
        return {str(key): value for part in parts if isinstance(part, Mapping) for key, value in part.items()}


def read_inert(file: BinaryIO, path: Path, size: int, storages: Storages | None = None) -> tuple[Any, bool]:
    """Read the pickle at the current position of an open file.

    Parameters
    ----------
    file
        What is read.
    path
        Its name for messages.
    size
        Bytes of the whole file; arrays may take no more than in proportion to it.
    storages
        From a persistent identity to a flat tensor, for formats that have any.

    Returns
    -------
    loaded
        Dicts, lists, tensors, plain values and records.
    has_arrays
        Whether there are NumPy arrays in it.

    Raises
    ------
    CheckpointError
        The pickle is damaged or nested too deeply.
    """
    reader = _Reader(file, path, storages)
    try:
        return _Plain(size).of(reader.load()), reader.has_arrays
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply to be a checkpoint") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None


class _Dict(dict[Any, Any]):
    """An ordered dict; attributes that were set on it, such as torch's `_metadata`, are left out."""

    def __setstate__(self, state: object) -> None: ...


class _Type:
    """The type of an array's numbers; None where they are none."""

    def __init__(self, code: object, *_: object) -> None:
        self.type = np.dtype(str(code)) if code in _NUMBERS else None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if self.type is not None and state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


class _Array:
    """An array whose shape and bytes come after it; several may have the same bytes."""

    def __init__(self, *_: object) -> None:
        self.values: np.ndarray | None = None
        self.of_numbers = True

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.of_numbers = kind.type is not None
        if self.of_numbers:
            self.values = np.frombuffer(data, kind.type).reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    """Build an array as pickles of protocol 5 hold it."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", data))
    return array


class _Call:
    """A function that a pickle may call; a new one for each pickle, which may set attributes on it."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __call__(self, *arguments: object) -> object:
        return self.function(*arguments)


class _StorageKind:
    """The type of numbers of a storage of torch."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _scalar(kind: _Type, data: Any) -> object:
    return Record(data) if kind.type is None else np.frombuffer(data, kind.type)[0].item()


def _encoded(text: str, encoding: str) -> bytes:
    """Encode bytes, which pickles of protocol 2 write as text."""
    if encoding != "latin1":
        raise CheckpointError(f"text in the encoding {encoding!r} is no part of a checkpoint")
    return text.encode("latin1")


def _storage(data: bytes) -> Tensor:
    """Read a storage that torch.save wrote, as a flat tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that storages with a type will go
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return torch.tensor([], dtype=stored.dtype).set_(stored.untyped())


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if math.prod(size) and not 0 <= last < len(storage):
        raise ValueError("a tensor reaches beyond its numbers")
    return storage.as_strided(size, stride, offset)


def _typed_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    """Build a tensor over a storage of bytes; its type comes after whether it has gradients, and its hooks."""
    return _tensor(storage.view(torch.uint8).view(rest[2]), offset, size, stride)


def _first(value: object, *_: object) -> object:
    """Take a tensor for a parameter of it."""
    return value


def _subclassed(function: object, _kind: object, arguments: tuple[object, ...], *_: object) -> object:
    """Build a tensor of a subclass, such as a named one, as a plain one."""
    return function(*arguments) if isinstance(function, _Call) else Record(*arguments)


def _elements(values: Any = (), *_: object) -> tuple[Any, ...]:
    return tuple(values)


_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _Dict,
    "numpy.dtype": _Type,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclassed,
    "torch.Size": _elements,
    "torch.storage._load_from_bytes": _storage,
    "_codecs.encode": _encoded,
    **{f"{home}.{kind}": _elements for home in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}


# Python's own unpickler: the one in C allocates as many objects as a number in the file demands.
class _Reader(pickle._Unpickler):
    def __init__(self, file: Any, path: Path, storages: Storages | None) -> None:
        super().__init__(file)
        self.path = path
        self.storages = storages
        self.has_arrays = False
        self.kinds: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        self.has_arrays |= wanted.endswith(("._reconstruct", "._frombuffer"))
        if wanted == "numpy.ndarray":  # an argument of `_reconstruct`, never called itself
            return wanted
        if wanted in _CALLS:
            return _Call(_CALLS[wanted])
        if wanted in _DTYPES:
            return _DTYPES[wanted]
        if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
            return _StorageKind(_STORAGES[name])
        if wanted not in self.kinds:
            if len(self.kinds) == _KINDS:
                raise CheckpointError(f"{self.path} names more than {_KINDS:,} classes: it is no checkpoint")
            self.kinds[wanted] = type("Record", (Record,), {"kind": wanted})
        return self.kinds[wanted]

    def get_extension(self, code: int) -> Any:
        raise CheckpointError(f"{self.path} refers to something outside of itself: it is no checkpoint")

    def persistent_load(self, identity: Any) -> Any:
        if self.storages is None or not isinstance(identity, tuple):
            raise CheckpointError(f"{self.path} refers to something outside of itself: it is no checkpoint")
        return self.storages(identity)


class _Plain:
    """Builder of arrays, each once: a pickle may hold the same list in a list, many times over, or in itself.

    Parameters
    ----------
    size
        Of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._bytes = TIMES * size + BYTES
        self._made: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no identity is given twice

    def of(self, loaded: Any) -> Any:
        """Return dicts, lists, tuples and records with their arrays built."""
        if not isinstance(loaded, (_Array, Mapping, list, tuple, set, frozenset, Record)):
            return loaded
        if id(loaded) not in self._made:
            self._kept.append(loaded)
            self._anew(loaded)
        return self._made[id(loaded)]

    def _anew(self, loaded: Any) -> None:
        if isinstance(loaded, _Array):
            self._made[id(loaded)] = self._array(loaded)
        elif isinstance(loaded, Mapping):
            built: dict[Any, Any] = {}
            self._made[id(loaded)] = built
            built.update({key: self.of(value) for key, value in loaded.items()})
        elif isinstance(loaded, Record):
            self._made[id(loaded)] = loaded
            loaded.arguments = tuple(self.of(value) for value in loaded.arguments)
            loaded.state = self.of(loaded.state)
            loaded.entries = [(key, self.of(value)) for key, value in loaded.entries]
        else:
            elements: list[Any] = []
            self._made[id(loaded)] = elements
            elements += [self.of(value) for value in loaded]

    def _array(self, loaded: _Array) -> Tensor | Record:
        if not loaded.of_numbers:
            return Record()
        if loaded.values is None:
            raise ValueError("an array has no values")
        self._bytes -= loaded.values.nbytes
        if self._bytes < 0:
            raise ValueError("its arrays are far larger than the file")
        return torch.from_numpy(loaded.values.astype(loaded.values.dtype.newbyteorder("="), order="C"))
