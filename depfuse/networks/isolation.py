"""Isolation from the caller's modes of torch, and from other threads.

Parents are copied before they are changed, random numbers come from own generators, and torch's modes belong to one
thread. A few things belong to the whole process (Python's warning filters, the root logger, torch's default generator,
hooks of all modules): whoever changes them for a while holds `one_at_a_time`. So does a whole fusion: beside other
threads oneDNN rounds a convolution differently (by 5e-7 of 2), which a refit amplifies to 1e-3.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from depfuse.errors import DepfuseWarning, RecipeError

AUTOCAST = ("cpu", "cuda", "mps", "xpu")  # device types
_CPU = torch.device("cpu")  # the default device
_LOCK = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute with gradients, without autocast, outside inference mode and with tensors on the CPU by default.

    These modes belong to the calling thread alone. It decorates functions as well.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_outside_autocast())
        yield


@contextmanager
def keeping_defaults() -> Iterator[None]:
    """Restore torch's default type and device afterwards, and whether gradients are recorded: a script may set them."""
    kind, device, recorded = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(kind)
        torch.set_grad_enabled(recorded)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device == _CPU else device)


@contextmanager
def _outside_autocast() -> Iterator[None]:
    """Make an autocast inside be the outermost one, at whose end torch clears its cache of cast weights.

    Inside a caller's autocast, even a disabled one, torch keeps the cache: a changed weight would be used as it was.
    """
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        for _ in range(depth):
            torch.autocast_increment_nesting()


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the search for cyclic garbage; it decorates functions as well.

    Code that builds millions of small objects and throws few away spends a quarter of its time in it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Run the block in one thread at a time; it decorates functions as well."""
    with _LOCK:
        yield


@contextmanager
def isolated() -> Iterator[None]:
    """Combine `one_at_a_time` and `undisturbed`; as a decorator it adds one frame to the stack that warnings count."""
    with one_at_a_time(), undisturbed():
        yield


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress warnings of other libraries; depfuse's own, in other threads too, are filtered as before."""
    with one_at_a_time(), warnings.catch_warnings():
        before = list(warnings.filters)
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", DepfuseWarning)
        for action, message, category, module, line in reversed(before):
            assert isinstance(category, type)
            if issubclass(category, DepfuseWarning) or issubclass(DepfuseWarning, category):
                narrowed = category if issubclass(category, DepfuseWarning) else DepfuseWarning
                warnings.filters.insert(0, (action, message, narrowed, module, line))  # type: ignore[attr-defined]
        yield


def check_changeable(model: nn.Module) -> None:
    """Raise `RecipeError` for a network made in inference mode, whose tensors torch does not change outside it."""
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise RecipeError(
            f"{type(model).__name__} was made in inference mode, and cannot be changed outside it: make it, or a copy "
            "of it, outside"
        )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's default generators, which dropout uses, within the block, and restore them afterwards."""
    devices = [device] if device.type == "cuda" else []
    with one_at_a_time(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
