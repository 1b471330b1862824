"""Running of networks: modes, hooks, and the place of an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

Hook = Callable[[nn.Module, Any, Tensor], Tensor | None]


@contextmanager
def evaluating(*models: nn.Module, auxiliary: Iterable[str] = ()) -> Iterator[None]:
    """Put networks into evaluation mode within the block; every module gets its mode back.

    Modules named by `auxiliary` alone are put into training mode, so that they run the heads that they use in training
    only, while every layer below them stays in evaluation mode.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
        for name in auxiliary:
            model.get_submodule(name).training = True
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Register forward hooks on modules, by name, within the block."""
    with removing(model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()):
        yield


@contextmanager
def removing(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks, of any kind, at the end of the block."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def float_tensors(outputs: Any) -> list[Tensor]:
    """List the floating-point tensors in the outputs of a network, however they are nested."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def raised_in(model: nn.Module, error: BaseException) -> str:
    """Find the innermost module whose forward pass raised an exception, by name; '' is the network itself."""
    names = {id(module): name for name, module in model.named_modules()}
    place = ""
    step = error.__traceback__
    while step is not None:
        place = names.get(id(step.tb_frame.f_locals.get("self")), place)
        step = step.tb_next
    return place


def modules_in_order(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """List the names of modules in the order in which they first ran during `run`; '' is the network itself."""
    order: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: order.setdefault(name)

    with removing([module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]):
        run()
    return list(order)
