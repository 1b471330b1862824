"""Detection of control flow that depends on values: other inputs may take another path through the network.

A trace shows one path through the network. Where the forward pass asks for a tensor's value in Python
(`if x.sum() > 0`, `float(x)`, `x.tolist()`), other inputs may take other paths, which neither the trace nor the proof
covers. So all channels of the module's inputs, outputs and parameters are fixed; but for decisions about inputs
(`decisions.py`), of which both paths are proved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.groups.labels.rules import Replay
from depfuse.groups.tracing.decisions import YES_OR_NO, Dependence
from depfuse.groups.tracing.overwrites import METADATA
from depfuse.networks.forward import Example, run_network
from depfuse.networks.leaves import tensors_in

ASKING: dict[Any, str] = {
    torch.Tensor.__bool__: "bool",
    torch.Tensor.__int__: "int",
    torch.Tensor.__float__: "float",
    torch.Tensor.__index__: "index",
    torch.Tensor.__contains__: "in",
    torch.Tensor.item: "item",
    torch.Tensor.tolist: "tolist",
    torch.Tensor.numpy: "numpy",
    torch.Tensor.equal: "equal",
    torch.Tensor.allclose: "allclose",
    torch.Tensor.is_nonzero: "is_nonzero",
    torch.equal: "equal",
    torch.allclose: "allclose",
    torch.is_nonzero: "is_nonzero",
}


@dataclass(frozen=True)
class Branch:
    """A module that read a tensor's value while it ran, and the call."""

    module: str
    operation: str

    @property
    def reason(self) -> str:
        """Reason why the module's channels are fixed."""
        place = self.module or "the network itself"
        return f"{self.operation}() in {place} makes the computation depend on values"


class BranchWatch(Dependence):
    """Recorder, while it is active, of modules run by `run_network` that read values in Python.

    Only values of tensors that depend on the example or on something that requires gradients count: a network may
    ask about shapes and constants. The latter are recorded where they meet other tensors, and so is what was computed
    from inputs without gradients alone: a bias by head and distance of the tokens that a mask leaves.

    Attributes
    ----------
    branches
        The modules, in order.
    decisions
        Those that only ask inputs, no parameters, for yes or no.
    constants
        Autograd function -> the constants among its operands, and values of inputs without gradients.
    """

    def __init__(self, example: Example) -> None:
        super().__init__(example)
        self.branches: dict[Branch, None] = {}
        self.decisions: dict[Branch, None] = {}
        self.constants: dict[Any, list[Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, record whether it reads a value, and pass dependence on to its results."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, METADATA) and func not in ASKING:
            return result
        operands = tensors_in(args, kwargs)
        with torch._C.DisableTorchFunction():  # what is asked here is nothing for the other modes
            depends = self.of(operands)
            if depends is not None:
                if func in ASKING and (module := _running_module(sys._getframe(1))) is not None:
                    asked = self.decisions if depends and func in YES_OR_NO else self.branches
                    asked[Branch(module, ASKING[func])] = None
                self.mark(operands[0] if func is torch.Tensor.__setitem__ else result, depends)
            if isinstance(result, Tensor) and result.grad_fn is not None and len(operands) > 1:
                constants = [each for each in operands if self.of([each]) is not False]
                if constants:
                    self.constants.setdefault(result.grad_fn, [each.detach() for each in constants])
        return result


def _running_module(frame: FrameType | None) -> str | None:
    """Return the innermost running module within the network that `run_network` runs; None outside of it."""
    innermost: nn.Module | None = None
    while frame is not None and frame.f_code is not run_network.__code__:
        if innermost is None and isinstance(owner := frame.f_locals.get("self"), nn.Module):
            innermost = owner
        frame = frame.f_back
    if frame is None:
        return None
    network: nn.Module = frame.f_locals["model"]
    return next((name for name, module in network.named_modules() if module is innermost), "")


def fix_branches(replay: Replay, branches: Iterable[Branch]) -> None:
    """Pin every channel in the inputs, outputs and parameters of a branching module."""
    for branch in branches:
        prefix = f"{branch.module}." if branch.module else ""
        owned = [
            labels
            for leaf, labels in replay.leaves.items()
            if any(key.startswith(prefix) for key in replay.trace.leaves[leaf])
        ]
        passing = [replay.values[call.value] for call in replay.trace.calls if call.module == branch.module]
        for labels in owned + passing:
            for factor in labels.factors:
                replay.ledger.pin(factor.labels, branch.reason)
