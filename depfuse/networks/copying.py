"""Copies of networks that keep their hooks, and compute with their own tensors only.

A forward hook is a part of the network: one may fold a weight (`torch.nn.utils.weight_norm`), and one may keep an
activation for a later layer (a U-Net built by hooks). A method of the network, or of an object that belongs to the hook
alone, is bound to the copy when it is copied. A function that refers to something outside (a list, the original's
modules) cannot be bound: it is left out, and `check_hooks` shows whether the network computes the same without it.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from depfuse.errors import ArchitectureError
from depfuse.networks.forward import Example, run_network
from depfuse.networks.leaves import tensors_in
from depfuse.networks.running import evaluating
from depfuse.text import first_line

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 1e-1}  # of outputs, relative to the largest; 1e-4 for other types
UNLIKELY = 5_381_742_099  # a seed that no example is drawn from, lest the random inputs be the example again
CONTAINERS = (OrderedDict, dict, list, set)
CONSTANTS = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, CodeType, BuiltinFunctionType)


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


def hooked_modules(model: nn.Module) -> list[str]:
    """List the names of modules that have forward hooks; the network itself by its class."""
    network = unwrap(model)
    return [
        name or type(network).__name__
        for name, module in network.named_modules()
        if any(module.__dict__[hooks] for hooks in FORWARD_HOOKS)
    ]


def check_hooks(model: nn.Module, example: Example) -> None:
    """Check that a copy of a network with forward hooks computes the same, and from its own weights.

    Both run on the example and on random inputs of its shape, so that no activation kept from an earlier pass can be
    right by chance. Then the copy's weights are changed, and only its own outputs may change.

    Raises
    ------
    ArchitectureError
        Their outputs differ, or changing the copy changes the network.
    """
    hooked = hooked_modules(model)
    if not hooked:
        return
    network, copied = unwrap(model), evaluation_copy(model)
    example = fit_example(example, network)
    wanted: list[Tensor] | None = None
    with torch.no_grad(), evaluating(network):
        for inputs in (example, random_like(example)):
            copied_outputs, before = _outputs(copied, inputs), wanted
            wanted = _outputs(network, inputs)
            if wanted is None or not same_outputs(_outputs(network, inputs), wanted):
                return  # it does not run there, or is random: tracing and proving report that themselves
            if not same_outputs(copied_outputs, wanted):
                raise ArchitectureError(_unfaithful(network, hooked, "computes something else than the network"))
        for tensor in {id(tensor): tensor for tensor in copied.state_dict().values()}.values():
            if tensor.is_floating_point():
                tensor.mul_(1.5)
        changed = _outputs(copied, inputs)
        if not same_outputs(_outputs(network, inputs), wanted):
            raise ArchitectureError(_unfaithful(network, hooked, "changes what the network computes"))
        if same_outputs(changed, wanted) and not same_outputs(before, wanted):
            raise ArchitectureError(_unfaithful(network, hooked, "does not compute from its own weights"))


def private_copy(model: nn.Module, example: Example | None) -> nn.Module:
    """Copy a network in evaluation mode and check, where there is an example, that the copy computes the same alone.

    Raises
    ------
    ArchitectureError
        It cannot be copied; or the copy computes something else because of the network's forward hooks, or with the
        network's own tensors.
    """
    copied = evaluation_copy(model)
    if example is not None:
        check_hooks(model, example)
        inputs = fit_example(example, copied)
        # Where it does not run, tracing reports that.
        with torch.no_grad(), ForeignWatch(model) as foreign, suppress(Exception):
            run_network(copied, inputs)
        foreign.check()
    return copied


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


def _unfaithful(network: nn.Module, hooked: Sequence[str], what: str) -> str:
    names = ", ".join(hooked[:3]) + (f" and {len(hooked) - 3} more" if len(hooked) > 3 else "")
    return (
        f"a copy of {type(network).__name__} {what}, because of the forward hooks of {names}: make them methods of the "
        "network, so that what they keep belongs to it, or remove them"
    )


def _outputs(model: nn.Module, example: Example) -> list[Tensor] | None:
    """Run a network and return its output tensors; None where it raises."""
    try:
        return [leaf for leaf in tree_leaves(run_network(model, example)) if isinstance(leaf, Tensor)]
    except Exception:  # whatever the user's network raises
        return None


def same_outputs(outputs: Sequence[Tensor] | None, wanted: Sequence[Tensor] | None, tolerance: float = 1e-4) -> bool:
    """Tell whether outputs agree within a tolerance relative to the largest, and are finite at the same places."""
    if outputs is None or wanted is None or len(outputs) != len(wanted):
        return outputs is None and wanted is None
    pairs = zip(outputs, wanted, strict=True)
    return all(difference(one, other) <= TOLERANCE.get(other.dtype, tolerance) for one, other in pairs)


def difference(outputs: Tensor, wanted: Tensor) -> float:
    """Compute the largest difference relative to the largest finite entry; infinite for tensors of different kinds."""
    if outputs.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(outputs, wanted) else float("inf")
    outputs, wanted = outputs.double(), wanted.double()
    if not torch.equal(outputs.isfinite(), wanted.isfinite()):
        return float("inf")
    outputs, wanted = outputs.nan_to_num(0.0, 0.0, 0.0), wanted.nan_to_num(0.0, 0.0, 0.0)
    return float((outputs - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


class ForeignWatch(TorchFunctionMode):
    """Record, while active, which of a network's own tensors are used when `run_network` runs a copy of it.

    Attributes
    ----------
    found
        State-dict keys of the original's tensors that the copy computed with.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        network = unwrap(model)
        self._name = type(network).__name__
        self._known = {id(tensor): key for key, tensor in (*network.named_parameters(), *network.named_buffers())}
        self.found: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, and record the original's tensors among its operands."""
        for operand in tensors_in(args, kwargs):
            if id(operand) in self._known and _is_running():
                self.found[self._known[id(operand)]] = None
        return func(*args, **(kwargs or {}))

    def check(self) -> None:
        """Raise `ArchitectureError` where the copy computed with the original's tensors."""
        if self.found:
            raise ArchitectureError(
                f"a copy of {self._name} computes with the original's {next(iter(self.found))}: a function of its own "
                "reaches the original network; let it take the network as its argument, or make it a method"
            )


def _is_running() -> bool:
    """Tell whether `run_network` is on the stack."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not run_network.__code__:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
