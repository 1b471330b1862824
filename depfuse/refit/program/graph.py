"""A network as a list of functional operations that can be run step by step, with any weights."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from depfuse.errors import ArchitectureError
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example
from depfuse.networks.leaves import tensors_in
from depfuse.networks.running import raised_in
from depfuse.refit.program.exported import exported_operations
from depfuse.refit.program.functional import CHECKS, name_of
from depfuse.refit.program.plain import plain_operations
from depfuse.text import first_line

State = Mapping[str, Tensor]
Values = dict[fx.Node, Tensor]
_VIEW = torch.ops.aten.view.default


class Program:
    """The operations of a network in eval mode on batches of one size, named by state-dict keys.

    Parameters
    ----------
    model
        Any network whose first output is a tensor; left as it was.
    images
        A batch of the structure of all later ones, and of their size, which is part of most programs.

    Attributes
    ----------
    nodes
        The operations in executable order; `reorder` changes it.
    inputs
        The input nodes, one for each tensor of a batch, in its order.
    output
        The node that gives the network's (first) output.
    any_size
        True if batches may have any size, see `free_batch_size`.

    Raises
    ------
    ArchitectureError
        The network's path depends on values, or it takes or returns something else.
    """

    def __init__(self, model: nn.Module, images: Example) -> None:
        network = evaluation_copy(model, shared=True)
        try:
            found = plain_operations(network, images) or exported_operations(network, images)
        except Exception as error:  # torch.export has no one exception for what it cannot follow
            place = raised_in(network, error)
            raise ArchitectureError(
                f"{type(model).__name__}{f' ({place})' if place else ''} cannot be taken apart for refitting "
                f"({first_line(error)}): choose refit none"
            ) from error
        self._keys, self._constants, self._module = found.keys, found.constants, found.module
        self.any_size = False
        self._learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.nodes = [node for node in found.graph.nodes if node.op == "call_function" and name_of(node) != CHECKS]
        self.inputs, self.output = found.inputs, found.output

    def values_of(self, images: Example) -> Values:
        """Bind a batch to the input nodes."""
        leaves = tensors_in(images)
        return dict(zip(self.inputs, leaves, strict=True))

    def key(self, argument: Any) -> str | None:
        """Return the state-dict key of an operation's argument, where it is a parameter or a buffer."""
        return self._keys.get(argument.name) if isinstance(argument, fx.Node) else None

    def parameter(self, argument: Any) -> str | None:
        """Return the state-dict key of a parameter; a buffer, such as a filter that blurs, stays as it is."""
        key = self.key(argument)
        return key if key in self._learned else None

    @property
    def has_constants(self) -> bool:
        """Whether an operation reads a tensor that is neither an input nor of the state dict."""
        return bool(self._constants)

    def is_computed(self, node: fx.Node) -> bool:
        """Tell whether a node's value depends on the images or is computed from weights."""
        return node.op == "call_function" or node in self.inputs

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
        # A batch may lie in memory otherwise than the one that was traced.
        target: Callable[..., Any] = torch.reshape if node.target is _VIEW else node.target  # type: ignore[assignment]
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
