"""Replaying of a function on a GPU: its kernels are recorded once, and from then on started all together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

WARM = 3  # runs before the recording, in which libraries choose their kernels
WAITS = "called a synchronizing CUDA operation"


class Recording:
    """Run a function of tensors again and again; on a GPU as a CUDA graph, once it has been run `WARM` times.

    The host takes longer to start the kernels of a small network than the GPU to run them; a graph of them is started
    at once. The function may change tensors in place. What it takes otherwise than as an argument is taken from the
    same place in memory every time, and numbers keep the value that they had when it was recorded: call `forget` when
    these change. Floats among the arguments are tensors () float64 on a GPU.

    A function that makes the host wait for a value is run as it is, and so are arguments of other shapes than those
    that were recorded.

    Parameters
    ----------
    device
        Where the function computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._possible = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._possible else None  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Discard the recording."""
        self._shapes: tuple[Any, ...] | None = None
        self._runs = 0
        self._recorded: _Recorded | None = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run the function, always the same one, which takes and returns tensors in containers of any kind."""
        if not self._possible:
            return function(*arguments)
        leaves, structure = tree_flatten(arguments)
        leaves = [torch.full((), leaf, dtype=torch.float64, device=self._device) if isinstance(leaf, float) else leaf
                  for leaf in leaves]  # fmt: skip
        shapes = (structure, *map(_shape, leaves))
        if self._recorded is not None:
            recorded = shapes == self._shapes
            return self._recorded.replay(leaves) if recorded else function(*tree_unflatten(leaves, structure))
        if shapes != self._shapes:
            self._shapes, self._runs = shapes, 0
        self._runs += 1
        if self._runs <= WARM:
            return self._warmed(function, tree_unflatten(leaves, structure), judged=self._runs == WARM)
        try:
            self._recorded = _Recorded.of(function, leaves, structure, self._stream)
        except RuntimeError:  # not all that cannot be recorded makes the host wait
            self._possible = False
            return function(*tree_unflatten(leaves, structure))
        return self._recorded.replay(leaves)

    def _warmed(self, function: Callable[..., Any], arguments: Any, *, judged: bool) -> Any:
        """Run the function in the stream that records it; see whether the host has to wait, where it is judged."""
        assert self._stream is not None
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught, torch.cuda.stream(self._stream):
            warnings.simplefilter("always")
            try:
                torch.cuda.set_sync_debug_mode("warn" if judged else before)
                outputs = function(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        current.wait_stream(self._stream)
        if judged and any(WAITS in str(warning.message) for warning in caught):
            self._possible = False
        return outputs


@dataclass(frozen=True)
class _Recorded:
    """Kernels that read their inputs from certain tensors, and write their outputs to others."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Any]
    outputs: Any

    @classmethod
    def of(cls, function: Callable[..., Any], leaves: list[Any], structure: Any, stream: Any) -> _Recorded:
        """Record a function; nothing is computed."""
        inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outputs = function(*tree_unflatten(inputs, structure))
        return cls(graph, inputs, outputs)

    def replay(self, leaves: list[Any]) -> Any:
        """Run the kernels on other inputs of the same shapes."""
        for own, leaf in zip(self.inputs, leaves, strict=True):
            if isinstance(own, Tensor):
                own.copy_(leaf)
        self.graph.replay()
        return tree_map_only(Tensor, torch.clone, self.outputs)


def _shape(leaf: Any) -> Any:
    """Return what has to be the same in a replay: shape, layout and type of a tensor, or the value itself."""
    return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
