"""The operations of a network as a graph, and where they take their tensors from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn


@dataclass(frozen=True, eq=False)
class Operations:
    """Functional operations of ATen that compute a network's first output.

    Attributes
    ----------
    graph
        The operations.
    keys
        State-dict keys by name of the node that stands for the tensor.
    constants
        Tensors that are not in the state dict, by name of the node that stands for each.
    module
        What the graph's attributes are attributes of.
    inputs
        Nodes that stand for the tensors of a batch, in its order.
    output
        The node that gives the output.
    """

    graph: fx.Graph
    keys: Mapping[str, str]
    constants: Mapping[str, Tensor]
    module: nn.Module
    inputs: list[fx.Node]
    output: fx.Node
