"""What a caller has switched on changes nothing here, and what is switched here no other thread feels.

Parents are copied before anything is done with them, draws come from generators of their own, and torch's modes are
those of one thread. A few things there are once in a process only (Python's warning filters, the root logger, torch's
default generator, hooks of all modules): whoever changes them for a while holds `one_at_a_time`. So does a fusion as a
whole: beside other threads oneDNN rounds a convolution otherwise (by 5e-7 of 2), and a refit makes 1e-3 of that.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from depfuse.errors import DepfuseWarning, RecipeError

AUTOCAST = ("cpu", "cuda", "mps", "xpu")
_CPU = torch.device("cpu")  # where tensors are made that are not said to be elsewhere
_LOCK = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute with gradients, without autocast, outside inference mode and with tensors on the CPU by default.

    Whatever the caller has switched on.

    All of these are of the calling thread alone. It decorates functions as well.
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
def _outside_autocast() -> Iterator[None]:
    """Let an autocast in here be an outermost one, at whose end torch forgets the weights that it has cast.

    Inside a caller's, even one that is switched off, it keeps them: a weight that is changed would be used as it was.
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
def one_at_a_time() -> Iterator[None]:
    """Let one thread at a time do this; it decorates functions as well."""
    with _LOCK:
        yield


@contextmanager
def isolated() -> Iterator[None]:
    """Do both; as a decorator it adds one frame to the stack that warnings count."""
    with one_at_a_time(), undisturbed():
        yield


@contextmanager
def without_warnings() -> Iterator[None]:
    """Let other libraries warn in vain; warnings of depfuse's own, in other threads as well, go on as they were."""
    with one_at_a_time(), warnings.catch_warnings():
        before = list(warnings.filters)
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", DepfuseWarning)
        for action, message, category, module, line in reversed(before):
            assert isinstance(category, type)
            if issubclass(category, DepfuseWarning) or issubclass(DepfuseWarning, category):
                own = category if issubclass(category, DepfuseWarning) else DepfuseWarning
                warnings.filters.insert(0, (action, message, own, module, line))  # type: ignore[attr-defined]
        yield


def check_changeable(model: nn.Module) -> None:
    """Raise `RecipeError` where a network was made in inference mode, outside which torch does not change it."""
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise RecipeError(
            f"{type(model).__name__} was made in inference mode, and cannot be changed outside it: make it, or a copy "
            "of it, outside"
        )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from torch's default generators, which dropout uses, as after a seed, and leave them as they were."""
    devices = [device] if device.type == "cuda" else []
    with one_at_a_time(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
