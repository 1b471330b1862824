"""Diagnosis of a wider network that computes another function than the narrower one whose channels it holds.

Operations entry by entry, weighted sums and operations on each channel alone keep channels independent of those
beside them. A softmax or a norm over channels, or a part that is cut out by its position, does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating, float_tensors, raised_in, removing
from depfuse.text import first_line

TOLERANCE = 1e-9  # relative to the largest output; rounding in float64 is below 1e-12
PLACE_TOLERANCE = 1e-7  # of the largest value of a tensor, where the place is looked for
UNFIT = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError, ZeroDivisionError)
"""What a network raises whose code says how many channels there are."""


@dataclass(frozen=True)
class Fault:
    """Reason why channels of parents cannot be kept side by side in a wider network.

    Attributes
    ----------
    error
        The largest difference, relative to the largest output; infinite where the network does not run.
    words
        The fault, as the end of a sentence.
    """

    error: float
    words: str


def outputs_of(model: nn.Module, inputs: Example) -> list[Tensor]:
    """List the tensors that a network returns."""
    with torch.no_grad(), evaluating(model):
        return float_tensors(run_network(model, inputs))


def compared(network: nn.Module, expected: Sequence[Tensor], inputs: Example, parent: nn.Module) -> Fault | None:
    """Find the fault in the outputs of a network that holds the channels of another, a parent, and more."""
    try:
        outputs = outputs_of(network, inputs)
    except UNFIT as error:
        return not_taken(network, error)
    scale = max((float(wanted.abs().max()) for wanted in expected if wanted.numel()), default=0.0)
    if len(outputs) != len(expected) or any(a.shape != b.shape for a, b in zip(outputs, expected, strict=True)):
        return Fault(float("inf"), "with more channels the output has another shape")
    if not 0.0 < scale < float("inf"):
        return Fault(float("inf"), "on random values the output is zero, or not finite: nothing can be proved")
    differences = [float((a - b).abs().max()) for a, b in zip(outputs, expected, strict=True) if a.numel()]
    largest = max(differences) / scale
    if largest <= TOLERANCE:  # False for NaN
        return None
    return Fault(largest, f"{_mixing_place(parent, network, inputs)} does not keep channels side by side apart")


def not_taken(model: nn.Module, error: BaseException) -> Fault:
    """Describe the fault of a network that raises on another number of channels."""
    module = _said(model, raised_in(model, error))
    return Fault(float("inf"), f"{module} takes no other number of channels ({first_line(error)})")


@dataclass(frozen=True)
class _Seen:
    """A tensor at the input or output of a module."""

    module: str
    side: str
    value: Tensor


def _seen(model: nn.Module, inputs: Example) -> list[_Seen]:
    """Record the first input and output tensors of each module, in the order in which they were computed."""
    seen: list[_Seen] = []

    def note(module: str, side: str, values: Any) -> None:
        tensors = float_tensors(values)
        if tensors:
            seen.append(_Seen(module, side, tensors[0].detach()))

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _, values, name=name: note(name, "input", values)))
        handles.append(module.register_forward_hook(lambda _, __, value, name=name: note(name, "output", value)))
    with removing(handles):
        outputs_of(model, inputs)
    return seen


def _mixing_place(parent: nn.Module, network: nn.Module, inputs: Example) -> str:
    """Find where a network that holds a parent's channels first computes another function than the parent."""
    before = ""
    for narrow, wide in zip(_seen(parent, inputs), _seen(network, inputs), strict=False):
        if (narrow.module, narrow.side) != (wide.module, wide.side):
            break
        if not _contains(wide.value, narrow.value):
            leaf = next(parent.get_submodule(narrow.module).children(), None) is None
            if narrow.side == "output" and leaf:
                return _said(parent, narrow.module)
            return _between(parent, before, narrow.module if narrow.side == "input" else "")
        before = narrow.module or before
    return _between(parent, before, "")


def _between(model: nn.Module, first: str, last: str) -> str:
    where = f" between {first} and {last}" if first and last else f" after {first}" if first else ""
    return f"what {type(model).__name__} computes{where}"


def _contains(wide: Tensor, narrow: Tensor) -> bool:
    """Tell whether a parent's tensor is contained in that of a network with more channels."""
    if wide.dim() != narrow.dim():
        return False
    axes = [axis for axis in range(wide.dim()) if wide.shape[axis] != narrow.shape[axis]]
    if len(axes) > 1:  # a weight that is computed, with inputs and outputs of its own
        return True
    if bool(narrow.isfinite().all()) and not bool(wide.isfinite().all()):
        return False
    scale = float(narrow.abs().max()) if narrow.numel() else 0.0
    if not axes:
        return bool(((wide - narrow).abs() <= PLACE_TOLERANCE * scale).all())
    rows, others = (tensor.movedim(axes[0], 0).flatten(1) for tensor in (narrow, wide))
    distances = torch.cdist(rows, others, p=float("inf"))
    return bool((distances.amin(1) <= PLACE_TOLERANCE * scale).all())


def _said(model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return f"{kind} ({name})" if name else f"the forward pass of {kind}"
