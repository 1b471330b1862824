"""A network as a list of functional operations that can be run step by step, with any weights."""

from __future__ import annotations

import io
import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn

from depfuse.errors import ArchitectureError
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.isolation import without_warnings
from depfuse.networks.running import raised_in
from depfuse.text import first_line

State = Mapping[str, Tensor]
Values = dict[fx.Node, Tensor]


class Program:
    """The operations of a network in eval mode on batches of one size (`torch.export`), named by state-dict keys.

    Parameters
    ----------
    model
        Any network of one tensor input whose first output is a tensor; left as it was.
    images
        A batch of the size of all later ones: the size is part of the program.

    Attributes
    ----------
    nodes
        The operations in executable order; `reorder` changes it.
    images
        The input node.
    output
        The node that gives the network's (first) output.

    Raises
    ------
    ArchitectureError
        The network's path depends on values, or it takes or returns something else.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        network = evaluation_copy(model, shared=True)
        try:
            with without_warnings(), _without_logs(), redirect_stderr(io.StringIO()), torch.no_grad():
                exported = torch.export.export(network, (images,), strict=False).run_decompositions({})
        except Exception as error:  # torch.export has no one exception for what it cannot follow
            place = raised_in(network, error)
            raise ArchitectureError(
                f"{type(model).__name__}{f' ({place})' if place else ''} cannot be taken apart for refitting "
                f"({first_line(error)}): choose refit none"
            ) from error
        signature = exported.graph_signature
        self._keys = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._constants = {
            name: exported.constants[key] for name, key in signature.inputs_to_lifted_tensor_constants.items()
        }
        # Buffers outside the state dict are the same in every network.
        keys = network.state_dict().keys()
        buffers = dict(network.named_buffers(remove_duplicate=False))
        for name, key in list(self._keys.items()):
            if key not in keys:
                self._constants[name] = exported.constants[key] if key in exported.constants else buffers[key]
                del self._keys[name]
        self._module = exported.graph_module
        graph = exported.graph_module.graph
        self.nodes = [node for node in graph.nodes if node.op == "call_function"]
        placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
        self.images = placeholders[signature.user_inputs[0]]
        outputs = {node.name: node for node in graph.nodes}
        self.output = outputs[signature.user_outputs[0]]

    def key(self, argument: Any) -> str | None:
        """Return the state-dict key of an operation's argument, where it is a parameter or a buffer."""
        return self._keys.get(argument.name) if isinstance(argument, fx.Node) else None

    def is_computed(self, node: fx.Node) -> bool:
        """Tell whether a node's value depends on the images or is computed from weights."""
        return node.op == "call_function" or node is self.images

    def call(self, node: fx.Node, state: State, values: Mapping[fx.Node, Tensor]) -> Any:
        """Run one operation."""

        def fetch(argument: fx.Node) -> Any:
            if argument in values:
                return values[argument]
            if argument.name in self._keys:
                return state[self._keys[argument.name]]
            if argument.name in self._constants:
                return self._constants[argument.name]
            return getattr(self._module, str(argument.target))

        if node.target is operator.getitem:
            return fetch(node.args[0])[node.args[1]]  # type: ignore[arg-type]
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        return target(*fx.node.map_arg(node.args, fetch), **fx.node.map_arg(node.kwargs, fetch))

    def reorder(self, after: Mapping[fx.Node, fx.Node]) -> None:
        """Sort the operations so that each key of `after` also comes after its value; other orders stay."""
        placed: set[fx.Node] = set()
        order: list[fx.Node] = []
        stack = list(reversed(self.nodes))
        while stack:
            node = stack[-1]
            needed = [*node.all_input_nodes, *([after[node]] if node in after else [])]
            missing = [other for other in needed if other.op == "call_function" and other not in placed]
            if missing:
                stack += reversed(missing)
                continue
            stack.pop()
            if node not in placed:
                placed.add(node)
                order.append(node)
        self.nodes = order


@contextmanager
def _without_logs() -> Iterator[None]:
    """Silence the logs of tracing, which print pages about what it could not follow; its exception is one sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
