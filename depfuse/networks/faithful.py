"""Whether a copy of a network is faithful: it computes what the network does, and with its own tensors only.

Copies leave out hooks that refer to something outside (see `copying`), and a function of the user's may reach the
original's weights from a copy. Both show when the two run on the same inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depfuse.errors import ArchitectureError
from depfuse.networks.copying import FORWARD_HOOKS, evaluation_copy, fit_example, random_like, unwrap
from depfuse.networks.forward import Example, run_network
from depfuse.networks.leaves import tensors_in
from depfuse.networks.running import evaluating

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 1e-1}  # of outputs, relative to the largest; 1e-4 for other types


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


def _unfaithful(network: nn.Module, hooked: Sequence[str], what: str) -> str:
    names = ", ".join(hooked[:3]) + (f" and {len(hooked) - 3} more" if len(hooked) > 3 else "")
    return (
        f"a copy of {type(network).__name__} {what}, because of the forward hooks of {names}: make them methods of the "
        "network, so that what they keep belongs to it, or remove them"
    )


def _outputs(model: nn.Module, example: Example) -> list[Tensor] | None:
    """Run a network and return its output tensors; None where it raises."""
    try:
        return tensors_in(run_network(model, example))
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
