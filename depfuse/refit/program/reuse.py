"""Reuse the program of a network of the same structure: tracing takes seconds, and depends on no weight."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from enum import Enum
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from depfuse.data.inputs import count_samples, take_samples
from depfuse.networks.copying import FORWARD_HOOKS
from depfuse.networks.forward import Called, Example
from depfuse.refit.program.batch_size import free_batch_size
from depfuse.refit.program.graph import Program

MOST = 8  # programs that are kept, the last ones
_PLAIN = (int, float, str, bytes, types.NoneType, Enum, torch.dtype, torch.device, torch.memory_format)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def program_of(network: nn.Module, images: Example) -> Program:
    """Take apart a network, or reuse the program of one that has the same structure.

    Structures are the same where modules have equal classes and attributes, tensors equal names, shapes, strides, types
    and devices, and batches too, but for the number of their images where the program does not depend on it. What a
    program could depend on beside these, such as a hook or an attribute that is an object or a tensor, has it made
    anew.

    Parameters
    ----------
    network, images
        See `Program`.

    Raises
    ------
    ArchitectureError
        See `Program`.
    """
    key = structure_of(network, images)
    if key is None:
        return Program(network, images)
    of_any_size = ("any size", structure_of(network, take_samples(images, slice(0, 1))))
    found = _kept.get(key) or _kept.get(of_any_size)
    if found is None:
        found = Program(network, images)
        free_batch_size(found, count_samples(images))
        _kept.keep(of_any_size if found.any_size else key, found)
    reused = copy.copy(found)
    reused.nodes = list(found.nodes)  # `reorder` changes it
    return reused


def structure_of(network: nn.Module, images: Example) -> Hashable | None:
    """Compute what a network's program for such a batch depends on; None where that cannot be told."""
    try:
        return tuple(_structure(network, images))
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """A program could depend on something that cannot be compared."""


class _Kept:
    """The last programs, by structure."""

    def __init__(self) -> None:
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> Program | None:
        with self._lock:
            found = self._programs.pop(key, None)
            if found is not None:
                self._programs[key] = found
            return found

    def keep(self, key: Hashable, program: Program) -> None:
        with self._lock:
            self._programs[key] = program
            if len(self._programs) > MOST:
                self._programs.popitem(last=False)


_kept = _Kept()


def _structure(network: nn.Module, images: Example) -> Iterator[Hashable]:
    yield torch.get_default_dtype()
    yield torch.backends.mha.get_fastpath_enabled()
    if isinstance(images, Called):
        yield _frozen(images.call)
        images = images.batch
    leaves, places = tree_flatten(images)
    yield str(places)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            yield _layout(leaf)
            yield torch.is_autocast_enabled(leaf.device.type)
        else:
            yield _frozen(leaf)
    state = network.state_dict().keys()
    tensors: dict[int, str] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if any(vars(module)[hooks] for hooks in FORWARD_HOOKS):
            raise _UnknownError
        yield name
        yield cast(Hashable, type(module))
        yield type(module).forward
        for attribute, value in vars(module).items():
            if attribute not in _OF_EVERY_MODULE:
                yield attribute
                yield _frozen(value)
    for name, tensor in (
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ):
        if name not in state:  # its values are part of the program
            raise _UnknownError
        yield name
        yield tensors.setdefault(id(tensor), name)  # of a tensor that has several
        yield _layout(tensor)


def _layout(tensor: Tensor) -> Hashable:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        raise _UnknownError
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _frozen(value: Any) -> Hashable:
    """Make of a plain attribute what can be compared; functions and classes are compared by identity."""
    if isinstance(value, (torch.Size, *_PLAIN, *_CODE)):
        return type(value), value
    if type(value) in (tuple, list, set, frozenset):
        return type(value), tuple(map(_frozen, value))
    if type(value) in (dict, OrderedDict):
        return type(value), tuple((_frozen(key), _frozen(one)) for key, one in value.items())
    if type(value) is functools.partial:
        return _frozen((value.func, value.args, value.keywords))
    raise _UnknownError
