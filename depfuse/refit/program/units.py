"""Units that can be refitted: layers that are linear in their weights, with the BatchNorm that follows them."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx

from depfuse.refit.program.convolutions import CONVOLUTIONS, aten
from depfuse.refit.program.graph import Program

NORMALISATION = aten._native_batch_norm_legit_no_training.default


@dataclass(frozen=True, eq=False)
class Norm:
    """A BatchNorm layer: the state-dict keys of its tensors (weight and bias None where it has none), and epsilon."""

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer that is refitted, with its BatchNorm.

    Attributes
    ----------
    node
        The operation: a convolution, a linear layer, or a BatchNorm that stands alone.
    weight, bias
        State-dict keys of the operation's parameters; both None for a BatchNorm that stands alone.
    norm
        The BatchNorm whose output is the unit's; None where there is none.
    end
        Node of the unit's output.
    target
        Node whose value in the child shall match the parents': the addition that the unit's output feeds, or `end`.
    other
        The other operand of that addition.
    rectified
        True if a ReLU is the only consumer of the target.
    """

    node: fx.Node
    weight: str | None
    bias: str | None
    norm: Norm | None
    end: fx.Node
    target: fx.Node
    other: fx.Node | None
    rectified: bool

    @property
    def input(self) -> fx.Node:
        """Node of the unit's input."""
        return self.node.args[0]  # type: ignore[return-value]

    @property
    def keys(self) -> tuple[str, ...]:
        """State-dict keys of all tensors of the unit."""
        return tuple(key for key in _keys(self) if key is not None)

    @property
    def output_key(self) -> str:
        """State-dict key of a tensor whose first axis is that of the unit's output."""
        return self.keys[-1] if self.norm is not None else self.bias or self.keys[0]

    @property
    def axis(self) -> int:
        """Axis of the channels in the unit's output."""
        return -1 if self.node.target is aten.linear.default else 1


def find_units(program: Program, shared: Collection[str]) -> list[Unit]:
    """Find the units of a program in the order of their refit, and sort the program's operations accordingly.

    A layer whose weight is used more than once, or is in `shared` (several names for one tensor), is not a unit. Of
    two layers that meet at an addition the deeper one corrects for the other.
    """
    uses = Counter(key for node in program.nodes for a in node.all_input_nodes if (key := program.key(a)))
    depth: dict[fx.Node, int] = {}
    for node in program.nodes:
        depth[node] = max((depth.get(a, 0) for a in node.all_input_nodes), default=0) + 1

    def own(*keys: str | None) -> bool:
        return all(uses[key] == 1 and key not in shared for key in keys if key is not None)

    layers = [layer for node in program.nodes if (layer := _layer(program, node)) is not None and own(*_keys(layer))]
    paired = {layer.norm.mean for layer in layers if layer.norm is not None and layer.weight is not None}
    layers = [layer for layer in layers if layer.weight is not None or layer.norm.mean not in paired]  # type: ignore[union-attr]
    ends = {layer.end: layer for layer in layers}
    units: list[Unit] = []
    for layer in layers:
        total, other = _addition(layer, program)
        rival = ends.get(other) if other is not None else None
        if rival is not None and len(rival.end.users) == 1:
            rank = (depth[layer.end], program.nodes.index(layer.end))
            if rank < (depth[rival.end], program.nodes.index(rival.end)):
                total, other = None, None
        target = layer.end if total is None else total
        users = list(target.users)
        rectified = len(users) == 1 and users[0].target in (aten.relu.default, aten.relu_.default)
        units.append(Unit(layer.node, layer.weight, layer.bias, layer.norm, layer.end, target, other, rectified))
    program.reorder({unit.node: unit.other for unit in units if unit.other is not None})
    position = {node: number for number, node in enumerate(program.nodes)}
    return sorted(units, key=lambda unit: position[unit.node])


def feeding(unit: Unit, units: Sequence[Unit]) -> Unit | None:
    """Find the last unit whose output reaches this one's input through no other; None where the images do."""
    ends = {node: other for other in units for node in (other.end, other.target) if other is not unit}
    feeders: set[Unit] = set()
    seen: set[fx.Node] = set()
    stack = [unit.input]
    while stack:
        node = stack.pop()
        if node in ends:
            feeders.add(ends[node])
        elif node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return next((other for other in reversed(units) if other in feeders), None)


@dataclass(frozen=True, eq=False)
class _Layer:
    node: fx.Node
    weight: str | None
    bias: str | None
    norm: Norm | None
    end: fx.Node


def _keys(layer: _Layer | Unit) -> tuple[str | None, ...]:
    norm = layer.norm
    return (layer.weight, layer.bias, *((norm.weight, norm.bias, norm.mean, norm.variance) if norm else ()))


def _layer(program: Program, node: fx.Node) -> _Layer | None:
    if node.target is NORMALISATION:
        norm, outputs = _norm(program, node), _output_of_norm(node)
        if norm is None or outputs is None or norm.weight is None or norm.bias is None:
            return None
        return _Layer(node, None, None, norm, outputs)
    if node.target not in CONVOLUTIONS and node.target is not aten.linear.default:
        return None
    weight = program.parameter(node.args[1])
    has_bias = len(node.args) > 2 and node.args[2] is not None
    bias = program.parameter(node.args[2]) if has_bias else None
    source = node.args[0]
    if weight is None or (has_bias and bias is None) or not isinstance(source, fx.Node):
        return None
    if not program.is_computed(source):
        return None
    users = list(node.users)
    if len(users) == 1 and users[0].target is NORMALISATION and users[0].args[0] is node:
        norm, end = _norm(program, users[0]), _output_of_norm(users[0])
        if norm is not None and end is not None and norm.weight is not None and norm.bias is not None:
            return _Layer(node, weight, bias, norm, end)
    return _Layer(node, weight, bias, None, node)


def _norm(program: Program, node: fx.Node) -> Norm | None:
    _, weight, bias, mean, variance, _, epsilon = node.args
    keys = [program.key(a) for a in (weight, bias, mean, variance)]
    if keys[2] is None or keys[3] is None:
        return None
    return Norm(keys[0], keys[1], keys[2], keys[3], float(epsilon))  # type: ignore[arg-type]


def _output_of_norm(node: fx.Node) -> fx.Node | None:
    outputs = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    return outputs[0] if len(outputs) == 1 else None


def _addition(layer: _Layer, program: Program) -> tuple[fx.Node | None, fx.Node | None]:
    """Find the addition that is the only consumer of the layer's output, and its other operand."""
    users = list(layer.end.users)
    if len(users) != 1 or users[0].target not in (aten.add.Tensor, aten.add_.Tensor) or users[0].kwargs:
        return None, None
    first, second = users[0].args[:2]
    other = second if first is layer.end else first
    if not isinstance(other, fx.Node) or other is layer.end or not program.is_computed(other):
        return None, None
    if users[0].meta["val"].shape != layer.end.meta["val"].shape:
        return None, None
    return users[0], other
