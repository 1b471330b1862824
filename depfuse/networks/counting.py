"""Count the multiply-adds of a network, as torch's own counter does, which imports its compiler: that takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from depfuse.networks.dispatch import Watching
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating

aten = torch.ops.aten
_CONVOLUTIONS = (aten.convolution, aten._convolution, aten.cudnn_convolution)
_PRODUCTS = {aten.mm: 1, aten.bmm: 1, aten.addmm: 2, aten.baddbmm: 2}  # place of the factor whose rows are summed over


def multiply_adds(model: nn.Module, image: Example) -> int:
    """Count the multiply-adds of a forward pass of one image (1, C, H, W), in convolutions and matrix products."""
    counting = _Counting()  # type: ignore[no-untyped-call]
    with counting, torch.no_grad(), evaluating(model):
        run_network(model, image)
    return counting.total


class _Counting(Watching):  # type: ignore[no-untyped-call]
    """Mode that adds up the multiply-adds of the operations run in it."""

    supports_higher_order_operators = True
    total: int = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count it."""
        output = func(*args, **(kwargs or {}))
        operation = getattr(func, "overloadpacket", None)
        if operation in _CONVOLUTIONS:
            transposed = operation is not aten.cudnn_convolution and args[6]
            self.total += (args[0] if transposed else output).numel() * args[1][0].numel()
        elif operation in _PRODUCTS:
            self.total += output.numel() * args[_PRODUCTS[operation]].shape[-2]
        return output
