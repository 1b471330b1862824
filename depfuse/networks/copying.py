"""Copies of networks that keep their hooks, and compute with their own tensors only.

A forward hook is a part of the network: one may fold a weight (`torch.nn.utils.weight_norm`), and one may keep an
activation for a later layer (a U-Net built by hooks). A method of the network, or of an object that belongs to the hook
alone, is bound to the copy when it is copied. A function that refers to something outside (a list, the original's
modules) cannot be bound: it is left out, and `faithful.check_hooks` shows whether the network computes the same without
it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from depfuse.errors import ArchitectureError
from depfuse.networks.forward import Example
from depfuse.text import first_line

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
UNLIKELY = 5_381_742_099  # a seed that no example is drawn from, lest the random inputs be the example again
CONTAINERS = (OrderedDict, dict, list, set)
CONSTANTS = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, CodeType, BuiltinFunctionType)


def tied_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """List the names of a state dict that are of one tensor, several for each."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for key, tensor in state.items():
        if tensor.numel() and not tensor.is_meta:
            names.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(key)
    return [own for own in names.values() if len(own) > 1]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside wrappers: DataParallel, DistributedDataParallel, torch.compile, Lightning's Fabric.

    So is a LightningModule that has no `forward` of its own and one network inside; see `runnable`.
    """
    while True:
        inner = getattr(model, "_orig_mod", getattr(model, "_original_module", None))
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            inner = runnable(model)
        if inner is model:
            return model
        model = inner


def runnable(model: nn.Module) -> nn.Module:
    """Return the only network inside a LightningModule that has no `forward` of its own; any other network itself.

    Raises
    ------
    ArchitectureError
        It has several networks inside, or none.
    """
    owner = next((own for own in type(model).__mro__ if "forward" in vars(own)), None)
    if owner is None or owner.__name__ != "LightningModule":
        return model
    inner = {name: child for name, child in model.named_children() if next(child.parameters(), None) is not None}
    if len(inner) != 1:
        found = f"{len(inner)} networks inside ({', '.join(inner)})" if inner else "no network inside"
        raise ArchitectureError(
            f"{type(model).__name__} is a LightningModule without a forward of its own and with {found}: give one"
            " network"
        )
    return next(iter(inner.values()))


def evaluation_copy(model: nn.Module, dtype: torch.dtype | None = None, *, shared: bool = False) -> nn.Module:
    """Copy a network in evaluation mode, with the hooks that can be copied; the network itself is unchanged.

    Parameters
    ----------
    dtype
        Of the copy's floating-point tensors; as in the network where None.
    shared
        Let the copy's tensors share memory with the network's where their type allows: for running, not
        for changing.

    Raises
    ------
    ArchitectureError
        The network holds something that cannot be copied, or is compiled to TorchScript.
    """
    network = unwrap(model)
    if scripted := [name for name, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule)]:
        raise ArchitectureError(
            f"{scripted[0] or type(network).__name__} is compiled to TorchScript, in which operations cannot be "
            "followed: give the network that it was made from"
        )
    copies = _empty_containers(network)
    for tensor in (*network.parameters(), *network.buffers(), *_plain_tensors(network)):
        moved = tensor.detach().to(dtype=dtype if tensor.is_floating_point() else None, copy=not shared)
        is_parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
    hooks: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in network.modules():
        for name in (*FORWARD_HOOKS, *BACKWARD_HOOKS):
            original = module.__dict__[name]
            copies[id(original)] = OrderedDict()
            hooks.append(({} if name in BACKWARD_HOOKS else dict(original), copies[id(original)]))
    try:
        copied = copy.deepcopy(network, copies)
    except Exception as error:  # whatever an object of the user's raises that is copied with the network
        raise ArchitectureError(f"{type(network).__name__} cannot be copied: {first_line(error)}") from error
    for originals, copied_hooks in hooks:
        for number, hook in originals.items():
            if _is_portable(hook):
                with suppress(Exception):  # a hook that cannot be copied is left out as well
                    copied_hooks[number] = copy.deepcopy(hook, copies)
    return copied.eval()


def _plain_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors among a network's plain attributes: constants, and what a hook or a forward pass left there."""
    for module in network.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules") and not _is_plain(value):
                yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _is_plain(value: Any) -> bool:
    """Tell whether an attribute of a module holds no tensor, as most do: a constant or an empty container."""
    return type(value) in CONSTANTS or (type(value) in CONTAINERS and not value)


def _empty_containers(network: nn.Module) -> dict[int, Any]:
    """Make copies of the empty containers of modules, by `id`: of these `deepcopy` takes a third of its time."""
    values = (value for module in network.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in values if type(value) in CONTAINERS and not value}


def _is_portable(hook: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Tell whether a copy of a hook belongs to the copied network: it refers to nothing outside."""
    if id(hook) in seen or isinstance(hook, (*CONSTANTS, torch.dtype, torch.device)):
        return True
    seen = seen | {id(hook)}
    if isinstance(hook, partial):
        return all(_is_copied(part, seen) for part in (hook.func, *hook.args, *hook.keywords.values()))
    if isinstance(hook, FunctionType):
        return all(_is_constant(value, seen) for value in _reached(hook))
    return True  # a method or an object: copied with what it holds


def _is_copied(value: Any, seen: frozenset[int]) -> bool:
    """Tell whether a deep copy of what holds a value holds a copy of the value."""
    return _is_portable(value, seen) if callable(value) else True


def _is_constant(value: Any, seen: frozenset[int]) -> bool:
    """Tell whether a copied function may share a value that it refers to: no module and no container."""
    if isinstance(value, (tuple, frozenset)):
        return all(_is_constant(part, seen) for part in value)
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    if _is_of_one_call(value):
        return True
    return isinstance(value, (*CONSTANTS, FunctionType, torch.dtype, torch.device)) and _is_portable(value, seen)


def _is_of_one_call(value: Any) -> bool:
    """Tell whether a value is a context variable, or wraps one: set by each call for itself, and empty between calls.

    By such, transformers' networks collect the hidden states that a later part reads.
    """
    if isinstance(value, ContextVar):
        return value.get(None) is None
    parts = getattr(value, "__dict__", None)
    if not isinstance(parts, dict) or callable(value):
        return False
    inner = [part for part in parts.values() if not isinstance(part, CONSTANTS)]
    return bool(inner) and all(isinstance(part, ContextVar) and part.get(None) is None for part in inner)


def _reached(function: FunctionType) -> Iterator[Any]:
    """Yield the values that a function refers to: its closure, its defaults and the globals in its code."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)


def fit_example(example: Example, network: nn.Module) -> Example:
    """Move an example to a network's device, and its floating-point tensors to the network's type."""
    tensors = (*network.parameters(), *network.buffers())
    device = next((tensor.device for tensor in tensors), None)
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return tree_map(moved, example)  # type: ignore[no-any-return]


def random_like(example: Example, scale: float = 1.0) -> Example:
    """Draw random inputs of an example's shapes; tensors that are not floating-point stay."""
    generator = torch.Generator().manual_seed(UNLIKELY)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float32).mul_(scale).to(leaf)

    return tree_map(drawn, example)  # type: ignore[no-any-return]
