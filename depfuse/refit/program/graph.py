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
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_leaves

from depfuse.errors import ArchitectureError
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import INNER, Example, as_module
from depfuse.networks.isolation import without_warnings
from depfuse.networks.running import raised_in
from depfuse.refit.program.functional import CHECKS, functional, name_of
from depfuse.text import first_line

State = Mapping[str, Tensor]
Values = dict[fx.Node, Tensor]
_VIEW = torch.ops.aten.view.default


class Program:
    """The operations of a network in eval mode on batches of one size (`torch.export`), named by state-dict keys.

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
        # A tensor is given to the network itself; any other batch is one argument of what calls it.
        single = isinstance(images, Tensor)
        exportable, argument = (network, images) if single else as_module(network, images)
        try:
            with without_warnings(), _without_logs(), redirect_stderr(io.StringIO()), torch.no_grad():
                exported = functional(torch.export.export(exportable, (argument,), strict=False))
        except Exception as error:  # torch.export has no one exception for what it cannot follow
            place = raised_in(network, error)
            raise ArchitectureError(
                f"{type(model).__name__}{f' ({place})' if place else ''} cannot be taken apart for refitting "
                f"({first_line(error)}): choose refit none"
            ) from error
        signature = exported.graph_signature
        self._keys = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        if not single:
            self._keys = {name: key.removeprefix(INNER) for name, key in self._keys.items()}
        self._constants = {
            name: exported.constants[key] for name, key in signature.inputs_to_lifted_tensor_constants.items()
        }
        # Buffers outside the state dict are the same in every network.
        keys = network.state_dict().keys()
        buffers = dict(network.named_buffers(remove_duplicate=False))
        for name, key in list(self._keys.items()):
            if key not in keys:
                inner = key if single else f"{INNER}{key}"
                self._constants[name] = exported.constants[inner] if inner in exported.constants else buffers[key]
                del self._keys[name]
        self._module = exported.graph_module
        self.any_size = False
        graph = exported.graph_module.graph
        self.nodes = [node for node in graph.nodes if node.op == "call_function" and name_of(node) != CHECKS]
        placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
        # What is no tensor, such as a flag of a batch, is part of the program.
        self.inputs = [placeholders[name] for name in signature.user_inputs if name in placeholders]
        self.inputs = [node for node in self.inputs if isinstance(node.meta.get("val"), Tensor)]
        first = next(n for n, spec in enumerate(signature.output_specs) if spec.kind == OutputKind.USER_OUTPUT)
        self.output: fx.Node = next(iter(reversed(graph.nodes))).args[0][first]

    def values_of(self, images: Example) -> Values:
        """Bind a batch to the input nodes."""
        leaves = [leaf for leaf in tree_leaves(images) if isinstance(leaf, Tensor)]
        return dict(zip(self.inputs, leaves, strict=True))

    def key(self, argument: Any) -> str | None:
        """Return the state-dict key of an operation's argument, where it is a parameter or a buffer."""
        return self._keys.get(argument.name) if isinstance(argument, fx.Node) else None

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


@contextmanager
def _without_logs() -> Iterator[None]:
    """Silence the logs of tracing, which print pages about what it could not follow; its exception is one sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
