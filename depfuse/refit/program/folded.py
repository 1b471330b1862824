"""Networks of one program with every BatchNorm folded into the layer before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import ensemble_logits
from depfuse.networks.forward import Example
from depfuse.refit.program.convolutions import by_output
from depfuse.refit.program.graph import Program, State, Values
from depfuse.refit.program.units import Unit
from depfuse.tasks.task import Task


class Folded:
    """A program that runs units with a weight as affine maps: fewer operations, and no redundant parameters.

    Parameters
    ----------
    program
        The operations.
    units
        Units; each with a weight is run as one operation, of which its BatchNorm, in eval mode, is part.
    """

    def __init__(self, program: Program, units: Sequence[Unit]) -> None:
        self.program = program
        self.units = [unit for unit in units if unit.weight is not None]
        self._layers = {unit.node: unit for unit in self.units}
        self._ends = {unit.end: unit for unit in self.units if unit.end is not unit.node}
        self._inner = {unit.node for unit in self._ends.values()}
        norms = {user for unit in self.units if unit.norm is not None for user in unit.node.users}
        self._left_out = (norms | {user for norm in norms for user in norm.users}) - self._ends.keys()

    def maps(self, state: State) -> dict[str, Tensor]:
        """Compute weight and shift of every unit, with its BatchNorm folded in, by `weight_and_shift`."""
        return {key: tensor for unit in self.units for key, tensor in self.map_of(unit, state).items()}

    def map_of(self, unit: Unit, state: State) -> dict[str, Tensor]:
        """Compute weight and shift of one unit, with its BatchNorm folded in."""
        weight, shift = weight_and_shift(unit)
        tensor, norm = state[weight], unit.norm
        if norm is None:
            return {weight: tensor.clone()} if shift is None else {weight: tensor.clone(), shift: state[shift].clone()}
        assert shift is not None
        scale = scale_of(unit, state)
        offset = state[norm.mean] if unit.bias is None else state[norm.mean] - state[unit.bias]
        return {
            weight: tensor * by_output(unit.node, tensor, scale),
            shift: state[shift] - scale * offset,
        }

    def write(self, maps: State, state: State) -> None:
        """Invert `maps`: write the maps into layers and BatchNorms, whose statistics stay."""
        for unit in self.units:
            weight, shift = weight_and_shift(unit)
            norm = unit.norm
            if norm is None:
                state[weight].copy_(maps[weight])
                if shift is not None:
                    state[shift].copy_(maps[shift])
                continue
            assert shift is not None
            assert norm.weight is not None
            scale = scale_of(unit, state)
            # A channel that was switched off has no scale of its own.
            scale = torch.where(scale.abs() > 1e-6, scale, torch.ones_like(scale))
            state[weight].copy_(maps[weight] / by_output(unit.node, maps[weight], scale))
            if unit.bias is not None:
                state[unit.bias].zero_()
            state[norm.weight].copy_(scale * (state[norm.variance] + norm.epsilon).sqrt())
            state[shift].copy_(maps[shift] + scale * state[norm.mean])

    def is_inner(self, node: fx.Node) -> bool:
        """Tell whether a value lies between a layer and its BatchNorm's output: there is none, or `call` removes it."""
        return node in self._inner or node in self._left_out

    def call(self, node: fx.Node, maps: State, state: State, values: Values) -> None:
        """Run one operation, if it is any, and enter its value among `values`."""
        if node in self._layers:
            weight, shift = weight_and_shift(self._layers[node])
            bias = None if shift is None else maps[shift]
            values[node] = node.target(values[node.args[0]], maps[weight], bias, *node.args[3:])  # type: ignore[operator, index]
        elif node in self._ends:
            values[node] = values.pop(self._ends[node].node)
        elif node not in self._left_out:
            values[node] = self.program.call(node, state, values)

    def run(
        self, maps: State, state: State, images: Example, wanted: Sequence[fx.Node] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the outputs (N, C) and the values of some nodes.

        Parameters
        ----------
        maps
            Weights and shifts from `maps`.
        state
            The tensors of everything else.
        """
        values: Values = self.program.values_of(images)
        held = {*wanted, self.program.output}
        remaining = {node: len(node.users) for node in self.program.nodes}
        for node in self.program.nodes:
            self.call(node, maps, state, values)
            for source in node.all_input_nodes:
                if source in remaining and not self.is_inner(source):
                    remaining[source] -= 1
                    if remaining[source] == 0 and source not in held:
                        values.pop(source, None)
        return values[self.program.output], [values[node] for node in wanted]


@dataclass(frozen=True, eq=False)
class Teacher:
    """The ensemble of networks of one program.

    Attributes
    ----------
    folded
        The program.
    states
        The networks' weights.
    shares
        One weight per network, summing to one.
    labels
        Their label sets, where they differ.
    joint
        True if they share one head, see `ensemble_logits`.
    task
        What their outputs mean; by their shape where None.
    """

    folded: Folded
    states: Sequence[State]
    shares: Sequence[float]
    labels: LabelSets | None
    joint: bool
    task: Task | None
    _maps: list[dict[str, Tensor]]

    @classmethod
    def create(
        cls,
        folded: Folded,
        states: Sequence[State],
        shares: Sequence[float],
        labels: LabelSets | None,
        *,
        joint: bool = False,
        task: Task | None = None,
    ) -> Teacher:
        """Make an ensemble of networks, each with its BatchNorm folded."""
        return cls(folded, states, shares, labels, joint, task, [folded.maps(state) for state in states])

    def watched(
        self, images: Example, nodes: Sequence[fx.Node], temperature: float
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Compute logits (N, C) in float32, see `ensemble_logits`, and each network's values of some nodes."""
        outputs, values = [], []
        for maps, state in zip(self._maps, self.states, strict=True):
            output, at_nodes = self.folded.run(maps, state, images, nodes)
            outputs.append(output.float())
            values.append(at_nodes)
        return ensemble_logits(outputs, self.shares, self.labels, temperature, joint=self.joint, task=self.task), values


def weight_and_shift(unit: Unit) -> tuple[str, str | None]:
    """Return the state-dict keys that hold a unit's weight and the shift of its outputs."""
    assert unit.weight is not None
    return unit.weight, unit.bias if unit.norm is None else unit.norm.bias


def scale_of(unit: Unit, state: Mapping[str, Tensor]) -> Tensor:
    """Compute the factor (C,) of a unit's BatchNorm on the layer's outputs."""
    assert unit.norm is not None
    scale = (state[unit.norm.variance] + unit.norm.epsilon).rsqrt()
    return scale if unit.norm.weight is None else scale * state[unit.norm.weight]
