"""Torch-Pruning's DepGraph as the source of the graph: operations and their parameters.

`torch_pruning.DependencyGraph` traces a network by hooks and autograd and gives its layers and
operators as nodes. depfuse uses these nodes. DepGraph's next step, mapping channel indices from node to
node as Python lists (Fang et al., DepGraph, CVPR 2023, section 3.2), is replaced by labels on tensors
(`labels.py`, `rules`): lists cost 15 s on densenet121 and do not end on swin_t in torch-pruning 1.6.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from depfuse.errors import ArchitectureError
from depfuse.groups.deciding import DecidingWatch
from depfuse.groups.tracing.hidden import HiddenFlow, showing
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example, run_network
from depfuse.networks.isolation import without_warnings
from depfuse.networks.leaves import tensors_in
from depfuse.networks.running import evaluating, removing
from depfuse.text import first_line


def _without_timm() -> Any:
    """Import torch-pruning, but not timm, whose attention it counts operations of where it is installed.

    timm brings torchvision and TorchDynamo along: nearly half of the seconds in which depfuse is imported.
    """
    left_out = "timm" not in sys.modules
    if left_out:
        sys.modules["timm"] = None  # type: ignore[assignment]  # an import of it fails, as if it were not installed
    try:
        import torch_pruning

        return torch_pruning
    finally:
        if left_out:
            del sys.modules["timm"]


torch_pruning = _without_timm()


@dataclass(frozen=True)
class Call:
    """A tensor at the input or output of a module, as (operation that made it, output number).

    `first` tells whether it is the module's first positional input, or its only output.
    """

    module: str
    side: str
    value: tuple[Any, int]
    first: bool


@dataclass(frozen=True)
class Trace:
    """The computation of one forward pass.

    Attributes
    ----------
    operations
        Autograd functions in the order in which the forward pass created them.
    leaves
        id of each parameter or buffer of the traced copy -> its state-dict keys (several where
        modules share a tensor).
    tensors
        State-dict key -> the copy's tensor.
    modules
        Module name -> module of the copy.
    calls
        Inputs and outputs of all modules.
    outputs
        The tensors that the network returns, and those that sizes are decided from (`deciding.py`).
    spans
        First and last sequence number, and name, of each call of a module.
    chosen
        The operations that read a tensor at positions computed from others.
    ranked
        (Tensor's value, axis) where the places of the largest along an axis are used as indices.
    """

    operations: tuple[Any, ...]
    leaves: dict[int, tuple[str, ...]]
    tensors: dict[str, Tensor]
    modules: dict[str, nn.Module]
    calls: tuple[Call, ...]
    outputs: tuple[tuple[Any, int], ...]
    spans: tuple[tuple[int, int, str], ...]
    chosen: frozenset[Any] = frozenset()
    ranked: tuple[tuple[tuple[Any, int], int], ...] = ()

    @property
    def unused(self) -> frozenset[str]:
        """State-dict keys of parameters that the computation does not use."""
        below = (node for operation in self.operations for node, _ in operation.next_functions if node is not None)
        used = {id(node.variable) for node in below if hasattr(node, "variable")}
        parameters = {id(tensor) for tensor in self.tensors.values() if isinstance(tensor, nn.Parameter)}
        return frozenset(key for leaf in parameters - used for key in self.leaves[leaf])

    def module_of(self, operation: Any) -> str:
        """Return the innermost module that ran the operation; '' for the network itself."""
        number = operation._sequence_nr()
        starts, ends = self._limits
        inside = ((starts <= number) & (number < ends)).nonzero()[0]
        return self.spans[inside[(ends - starts)[inside].argmin()]][2] if len(inside) else ""

    @cached_property
    def _limits(self) -> np.ndarray:
        """First and last sequence numbers of the spans, (2, n)."""
        return np.array([span[:2] for span in self.spans], dtype=np.int64).reshape(-1, 2).T


def trace(model: nn.Module, example: Example, auxiliary: Iterable[str] = ()) -> Trace:
    """Run DepGraph's tracing on a copy of the network, on its own device and in its own memory.

    The modules named by `auxiliary` run as in training mode (see `evaluating`). What autograd hides (`hidden.py`) is
    shown, unless the network raises then: it may write to its own tensors where it has switched gradients off. A buffer
    that it writes to in any case, such as a counter of its calls, is then none that a gradient is taken by.

    Raises
    ------
    ArchitectureError
        The forward pass raises, or gives no tensor that depends on its input.
    """
    for shown, buffers in ((True, True), (False, True), (True, False)):
        try:
            return _traced(model, example, auxiliary, shown=shown, buffers=buffers)
        except ArchitectureError as error:
            raised = error
    raise raised


def _traced(model: nn.Module, example: Example, auxiliary: Iterable[str], *, shown: bool, buffers: bool) -> Trace:
    network = evaluation_copy(model, torch.float32, shared=True)
    leaves: dict[int, list[str]] = defaultdict(list)
    tensors: dict[str, Tensor] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        replayed = isinstance(module, nn.modules.batchnorm._BatchNorm)  # with the statistics that autograd saves
        statistics = set(module._buffers) if replayed or not buffers else set()
        owned = [(k, t) for k, t in (*module._parameters.items(), *module._buffers.items()) if t is not None]
        for key, tensor in owned:
            leaves[id(tensor)].append(prefix + key)
            tensors[prefix + key] = tensor
            if (tensor.is_floating_point() or tensor.is_complex()) and key not in statistics:
                tensor.requires_grad_(True)
    saved = network.state_dict().keys()
    device = next(iter(tensors.values())).device if tensors else torch.device("cpu")

    def as_input(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().to(device)
        return value.float().requires_grad_(True) if value.is_floating_point() else value

    with torch.enable_grad(), _recorded(network) as (calls, spans):
        graph, outputs, flow, chosen = _depgraph(network, tree_map(as_input, example), auxiliary, shown)
    return Trace(
        operations=_in_order(
            [node.grad_fn for node in graph.module2node.values()] + [fn for fn, _ in (*outputs, *flow.roots)]
        ),
        leaves={key: tuple(name for name in names if name in saved) for key, names in leaves.items()},
        tensors=tensors,
        modules=dict(network.named_modules()),
        calls=tuple(calls),
        outputs=outputs,
        spans=tuple(spans),
        chosen=chosen,
        ranked=tuple(flow.ranked),
    )


def _depgraph(
    network: nn.Module, example: Example, auxiliary: Iterable[str], shown: bool
) -> tuple[Any, tuple[tuple[Any, int], ...], HiddenFlow, frozenset[Any]]:
    """Build DepGraph's node graph of one forward pass; return the outputs, what autograd hides, and chosen positions.

    `DependencyGraph.build_dependency` traces and then maps indices; only the tracing is wanted, so its
    two steps before the mapping are called by themselves (they are private: the test
    `test_depgraph_tracing` states the versions of torch-pruning for which this holds).
    """
    outputs: list[tuple[Any, int]] = []

    def forward(model: nn.Module, inputs: Example) -> list[Tensor]:
        # Here, since DepGraph calls eval() first.
        with evaluating(model, auxiliary=auxiliary), showing(flow if shown else None), watch:
            outputs_found = tensors_in(_run(model, inputs))
        inferred = any(leaf.is_inference() for leaf in outputs_found)
        outputs_found += watch.tensors
        outputs_found = [leaf for leaf in outputs_found if leaf.grad_fn is not None]
        if not outputs_found:
            raise ArchitectureError(
                f"{type(model).__name__} computes in inference mode, which nothing can be traced in: let the code that"
                " calls it choose that mode"
                if inferred
                else f"{type(model).__name__} returns no tensor that depends on its input: nothing can be traced"
            )
        outputs.extend((leaf.grad_fn, leaf.output_nr) for leaf in outputs_found)
        return outputs_found

    flow, watch = HiddenFlow(), DecidingWatch()
    graph = torch_pruning.DependencyGraph()
    graph.model, graph.verbose, graph.ignored_params = network, False, []
    graph._module2name = {module: name for name, module in network.named_modules()}
    graph._param_to_name, graph.unwrapped_parameters = {}, []
    with without_warnings():
        graph.module2node = graph._trace(network, example, forward, None)
    return graph, tuple(outputs), flow, frozenset(watch.chosen)


def _run(network: nn.Module, example: Example) -> Any:
    try:
        return run_network(network, example)
    except Exception as error:
        raise ArchitectureError(
            f"the forward pass of {type(network).__name__} raises on the example input "
            f"{describe(example)}: {first_line(error)}"
        ) from error


def describe(example: Example) -> str:
    """Write the shapes of the example's tensors, for messages."""
    return ", ".join(str(tuple(leaf.shape)) for leaf in tree_leaves(example) if isinstance(leaf, Tensor)) or "given"


@contextmanager
def _recorded(network: nn.Module) -> Iterator[tuple[list[Call], list[tuple[int, int, str]]]]:
    """Record each module's tensors, and which autograd sequence numbers it spans, during a forward pass."""
    calls: list[Call] = []
    spans: list[tuple[int, int, str]] = []
    started: list[int] = []
    sequence_number: Callable[[], int] = torch._C._autograd._get_sequence_nr

    def note(name: str, side: str, value: Any) -> None:
        first = value[0] if side == "input" and value else value
        with torch._C.DisableTorchFunction():  # what is asked here is nothing for the modes
            traced = [leaf for leaf in tensors_in(value) if leaf.grad_fn is not None]
            calls.extend(Call(name, side, (leaf.grad_fn, leaf.output_nr), leaf is first) for leaf in traced)

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, keywords: Any) -> None:
            started.append(sequence_number())
            note(name, "input", inputs)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, result: Any) -> None:
            spans.append((started.pop(), sequence_number(), name))
            note(name, "output", result)

        return hook

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name)))
    with removing(handles):
        yield calls, spans


def _in_order(roots: Sequence[Any]) -> tuple[Any, ...]:
    """Sort all operations that the roots depend on, parameters' own nodes left out, in forward order."""
    seen: dict[Any, None] = {}
    stack = [root for root in roots if root is not None]
    while stack:
        operation = stack.pop()
        if operation in seen or hasattr(operation, "variable"):
            continue
        seen[operation] = None
        stack.extend(below for below, _ in operation.next_functions if below is not None)
    return tuple(sorted(seen, key=lambda operation: operation._sequence_nr()))
