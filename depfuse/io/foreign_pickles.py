"""Read pickles of arrays, as PaddlePaddle and Jittor save networks, without either and without running code.

A pickle is a program that may call anything that can be imported. Here it can call a few stand-ins only, which collect
an array's type, shape and bytes; arrays are built after the pickle has ended. All else that a pickle can make is plain:
dicts, lists, tuples, strings, numbers.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from depfuse.errors import CheckpointError
from depfuse.io.sizes import BYTES, TIMES

Layout = Literal["torch", "paddle", "paddle?"]

_PADDLE_MARK = "StructuredToParameterName@@"
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
_PADDLE_NAMES = {"_mean": "running_mean", "_variance": "running_var"}


def read_pickle(path: Path) -> tuple[Any, Layout]:
    """Read a pickle of arrays; arrays come as tensors, and pickled tensors as they are.

    Returns
    -------
    loaded
        What was pickled: dicts, lists and tuples of tensors and plain values.
    layout
        `paddle` where the weights of linear layers are (inputs, outputs) as in PaddlePaddle; `paddle?` where the file
        holds NumPy arrays without PaddlePaddle's mark; `torch` where it holds tensors.

    Raises
    ------
    CheckpointError
        The file is damaged, or calls or builds anything else.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path)
        try:
            loaded = reader.load()
            plain = _Plain(path.stat().st_size).of(loaded)
        except CheckpointError:
            raise
        except RecursionError:
            raise CheckpointError(f"{path} is nested too deeply to be a checkpoint") from None
        except Exception as error:  # a damaged pickle may raise anything
            raise CheckpointError(f"{path} is damaged or cut off: {error or type(error).__name__}") from None
    layout: Layout = "paddle?" if reader.has_arrays else "torch"
    if isinstance(plain, Mapping) and _PADDLE_MARK in plain:
        layout = "paddle"
    return plain, layout


def torch_names(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rename a BatchNorm's statistics as torch names them."""
    if layout == "torch":
        return dict(state)
    named = {}
    for key, tensor in state.items():
        place, dot, last = key.rpartition(".")
        named[f"{place}{dot}{_PADDLE_NAMES.get(last, last)}"] = tensor
    return named


class _Dict(dict[Any, Any]):
    """An ordered dict; attributes that were set on it, such as torch's `_metadata`, are left out."""

    def __setstate__(self, state: object) -> None: ...


class _Type:
    """The type of an array's numbers."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in _NUMBERS:
            raise CheckpointError(f"arrays of type {code!r} are no weights of a network")
        self.type = np.dtype(str(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


class _Array:
    """An array whose shape and bytes come after it; several may have the same bytes."""

    def __init__(self, *_: object) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
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


def _scalar(kind: _Type, data: bytes) -> int | float | bool:
    return np.frombuffer(data, kind.type)[0].item()  # type: ignore[no-any-return]


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


_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _Dict,
    "numpy.dtype": _Type,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "_codecs.encode": _encoded,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}


# Python's own unpickler: the one in C allocates as many objects as a number in the file demands.
class _Reader(pickle._Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self.path = path
        self.has_arrays = False

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        self.has_arrays |= wanted.endswith(("._reconstruct", "._frombuffer"))
        if wanted == "numpy.ndarray":  # an argument of `_reconstruct`, never called itself
            return wanted
        if wanted not in _CALLS:
            raise CheckpointError(
                f"{self.path} holds more than tensors and plain values ({wanted}), and reading it could run code: "
                "save the state dict alone, as arrays, where it was made"
            )
        return _Call(_CALLS[wanted])

    def persistent_load(self, number: Any) -> Any:
        raise CheckpointError(f"{self.path} refers to something outside of itself: it is no checkpoint")


class _Plain:
    """Builder of arrays, each once: a pickle may hold the same list in a list, many times over.

    Parameters
    ----------
    size
        Of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._bytes = TIMES * size + BYTES
        self._made: dict[int, Any] = {}

    def of(self, loaded: Any) -> Any:
        """Return dicts, lists and tuples with their arrays built."""
        if not isinstance(loaded, (_Array, Mapping, list, tuple)):
            return loaded
        if id(loaded) not in self._made:
            self._made[id(loaded)] = self._anew(loaded)
        return self._made[id(loaded)]

    def _anew(self, loaded: Any) -> Any:
        if isinstance(loaded, Mapping):
            return {key: self.of(value) for key, value in loaded.items()}
        if isinstance(loaded, (list, tuple)):
            return [self.of(value) for value in loaded]
        if loaded.values is None:
            raise ValueError("an array has no values")
        self._bytes -= loaded.values.nbytes
        if self._bytes < 0:
            raise ValueError("its arrays are far larger than the file")
        return torch.from_numpy(loaded.values.astype(loaded.values.dtype.newbyteorder("="), order="C"))
