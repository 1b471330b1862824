"""Targets of the child's layers: mixtures of the parents' outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from depfuse.data.inputs import map_tensors
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroup, ChannelGroups, Slot
from depfuse.merge.shares import Shares
from depfuse.networks.forward import Example
from depfuse.refit.layerwise.clusters import cluster_channels, in_order_of
from depfuse.refit.program.folded import Folded
from depfuse.refit.program.graph import State
from depfuse.refit.program.units import Unit
from depfuse.tasks.outputs import task_by_shape
from depfuse.tasks.task import Task

Mixtures = Mapping[Unit, Sequence[Tensor]]
"""Unit -> per parent, how much (n_channels, n_channels) of each of its channels goes to each channel of the child."""


class Targets:
    """The target values of the child's layers, computed from those of the parents.

    A unit's target is the mixture by its own shares. Where its output is added to a stream, the target of the stream
    after it is that mixture, whatever the shares of the units before it.

    Parameters
    ----------
    shares
        One weight per parent, summing to one, of the whole network or of each tensor.
    mixtures
        Mixtures of channels, for the units whose channels are not averaged one by one.
    labels
        The parents' label sets, where they differ.
    outputs
        The unit whose channels are the labels, where they differ.
    """

    def __init__(
        self, shares: Shares, mixtures: Mixtures, labels: LabelSets | None = None, outputs: Unit | None = None
    ) -> None:
        self.shares, self.mixtures, self.labels, self.outputs = shares, mixtures, labels, outputs

    def __call__(self, unit: Unit, values: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Compute a unit's target from the parents' values at its target node, and its upper bounds.

        Where a ReLU follows, the target is the mixture of its outputs. Where that is zero, the value before the ReLU
        may lie anywhere below its bound; the others have the bound -inf and are not free.
        """
        after = self.passed(unit, values)
        if not unit.rectified:
            return after, None
        idle = after <= 0
        before = self.mixed(unit, values)
        return torch.where(idle, before, after), torch.where(idle, 0.0, -torch.inf).to(before.dtype)

    def passed(self, unit: Unit, values: Sequence[Tensor]) -> Tensor:
        """Mix the parents' values, after the ReLU where one follows."""
        return self.mixed(unit, [value.relu() for value in values] if unit.rectified else values)

    def mixed(self, unit: Unit, values: Sequence[Tensor]) -> Tensor:
        """Mix the parents' values."""
        axis, shares = unit.axis, shares_of(unit, self.shares)
        if self.labels is not None and unit is self.outputs:
            return self.labels.join(values, shares, axis)
        if unit not in self.mixtures:
            return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)
        parts = [
            torch.einsum("oc,n...c->n...o", matrix, value.movedim(axis, -1))
            for matrix, value in zip(self.mixtures[unit], values, strict=True)
        ]
        return torch.stack(parts).sum(0).movedim(-1, axis)


def shares_of(unit: Unit, shares: Shares) -> tuple[float, ...]:
    """Return the parents' shares in a unit: those of its first tensor."""
    return shares.of(unit.keys[0])


def find_mixtures(
    folded: Folded, units: Sequence[Unit], states: Sequence[State], shares: Shares, groups: ChannelGroups,
    images: Sequence[Example], seed: int, task: Task | None = None,
) -> Mixtures:  # fmt: skip
    """Find mixtures of channels that preserve what the parents' outputs depend on, from unlabelled images.

    For every group of channels whose tensors all belong to units, the channels of all parents are clustered
    (`cluster_channels`) by their covariances after the non-linearity. A channel counts with its importance: the mean
    square of the derivative of a random mixture of the outputs by it. Parents count by their shares in each unit; a
    stream has one mixture for all units that write to it.

    Parameters
    ----------
    folded
        The parents' program.
    states
        The aligned parents' weights.
    images
        Batches of the program's size.
    task
        What the outputs mean; by their shape where None.

    Returns
    -------
    Mapping
        Unit -> mixtures, in the channel order of the aligned parents as far as clusters have one.

    Raises
    ------
    RecipeError
        Squares of activations or of the outputs' derivatives are not finite.
    """
    places = _places(units, groups)
    if not places:
        return {}
    importance, covariances = _moments(folded, list(places), states, images, seed, task)
    weights: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    written: dict[str, list[tuple[float, ...]]] = {}
    for unit, slots in places.items():
        unit_shares = shares_of(unit, shares)
        for group, slot in slots:
            index = slot.index[:, 0].to(covariances[unit].device)
            width = covariances[unit].shape[0] // len(states)
            chosen = torch.cat([index + parent * width for parent in range(len(states))])
            scale = torch.cat(
                [importance[unit][p][index] * (share * len(unit_shares)) for p, share in enumerate(unit_shares)]
            ).sqrt()
            covariance = scale[:, None] * covariances[unit][chosen][:, chosen] * scale
            # Parents count alike, and so do the places of a stream.
            power = covariance.diagonal().reshape(len(states), -1).mean(1)
            power = (
                power
                / torch.tensor(unit_shares, dtype=power.dtype, device=power.device).clamp_min(1e-12)
                / len(unit_shares)
            )
            even = power.clamp_min(1e-30).rsqrt().repeat_interleave(group.size)
            sums[group.name] = sums.get(group.name, 0) + even[:, None] * covariance * even
            weights[group.name] = weights.get(group.name, 0) + even * scale
            sizes[group.name] = group.size
            written.setdefault(group.name, []).append(unit_shares)
    mixed: dict[str, Tensor] = {}
    for name, covariance in sums.items():
        if not bool(covariance.isfinite().all()):
            raise RecipeError(
                f"activations or outputs are too large to be refitted: their squares at {name} exceed float32; scale"
                " the networks' outputs, or choose refit none"
            )
        mean = torch.tensor(written[name], dtype=torch.float64).mean(0)
        aligned = torch.cat([share * torch.eye(sizes[name], dtype=torch.float64) for share in mean], 1)
        clusters = in_order_of(cluster_channels(covariance.cpu(), sizes[name]), aligned)
        rows = clusters * weights[name].cpu()
        mixed[name] = rows / rows.sum(1, keepdim=True).clamp_min(1e-30)
    return {unit: _matrices(unit, slots, mixed, states, shares_of(unit, shares)) for unit, slots in places.items()}


def _differentiable(leaf: Tensor) -> Tensor:
    return leaf.clone().requires_grad_(leaf.is_floating_point())


def _places(units: Sequence[Unit], groups: ChannelGroups) -> dict[Unit, list[tuple[ChannelGroup, Slot]]]:
    """Find the groups in each unit's output that can be clustered, with their slots there."""
    ours = {key for unit in units for key in unit.keys}
    around = {group.inside[0] for group in groups if group.inside is not None}
    usable = [
        group
        for group in groups.free
        if group.inside is None
        and group.name not in around
        and all(slot.key in ours and slot.within is None for slot in group.slots)
    ]
    by_unit: dict[Unit, list[tuple[ChannelGroup, Slot]]] = {}
    for unit in units:
        key = unit.output_key
        slots = [(g, s) for g in usable for s in g.slots if s.key == key and s.axis == 0 and s.role != "consumes"]
        if slots and all(slot.index.shape[1] == 1 for _, slot in slots):
            by_unit[unit] = slots
    # A group that is clustered in one place and not in another would be torn apart.
    torn = {
        g.name for g in usable for unit in units if unit not in by_unit for s in g.slots if s.key == unit.output_key
    }
    whole = {unit: [(g, s) for g, s in slots if g.name not in torn] for unit, slots in by_unit.items()}
    return {unit: slots for unit, slots in whole.items() if slots}


def _matrices(
    unit: Unit,
    places: Sequence[tuple[ChannelGroup, Slot]],
    mixed: Mapping[str, Tensor],
    states: Sequence[State],
    shares: Sequence[float],
) -> list[Tensor]:
    tensor = states[0][unit.output_key]
    width = tensor.shape[0]
    matrices = [share * torch.eye(width, dtype=torch.float64) for share in shares]
    for group, slot in places:
        index = slot.index[:, 0]
        for parent, matrix in enumerate(matrices):
            matrix[index] = 0.0
            part = mixed[group.name][:, parent * group.size : (parent + 1) * group.size]
            matrix[index[:, None], index[None]] = part
    return [matrix.to(tensor) for matrix in matrices]


def _watched(unit: Unit) -> fx.Node:
    """Return the node at which a unit's channels are read: after the non-linearity where it is a ReLU."""
    return next(iter(unit.target.users)) if unit.rectified else unit.target


def _moments(
    folded: Folded,
    units: Sequence[Unit],
    states: Sequence[State],
    images: Sequence[Example],
    seed: int,
    task: Task | None,
) -> tuple[dict[Unit, list[Tensor]], dict[Unit, Tensor]]:
    """Compute how much the outputs depend on the parents' channels, and how these vary together, in one pass.

    Returns
    -------
    tuple of two dicts
        Per unit, for each parent the mean squared derivative (C,) of random output mixtures by every channel; and the
        covariance (P * C, P * C) of all parents' channels. Both in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    nodes = [_watched(unit) for unit in units]
    count: dict[Unit, int] = dict.fromkeys(units, 0)
    first: dict[Unit, Tensor] = {}
    second: dict[Unit, Tensor] = {}
    squares: dict[Unit, list[Tensor]] = {unit: [] for unit in units}
    for batch in images:
        values, gradients = zip(
            *(_values_and_gradients(folded, nodes, state, batch, generator, task) for state in states), strict=True
        )
        for number, unit in enumerate(units):
            rows = torch.cat([_by_place(unit, own[number]) for own in values], 1)
            count[unit] += len(rows)
            first[unit] = first.get(unit, 0) + rows.sum(0).double()
            second[unit] = second.get(unit, 0) + (rows.T @ rows).double()
            sums = [_by_place(unit, own[number]).square().sum(0).double() for own in gradients]
            squares[unit] = [a + b for a, b in zip(squares[unit], sums, strict=True)] if squares[unit] else sums
    importance = {unit: [square / count[unit] for square in squares[unit]] for unit in units}
    means = {unit: first[unit] / count[unit] for unit in units}
    return importance, {unit: second[unit] / count[unit] - torch.outer(means[unit], means[unit]) for unit in units}


def _by_place(unit: Unit, value: Tensor) -> Tensor:
    """Arrange a value by place: (images * places, C)."""
    return value.movedim(unit.axis, -1).flatten(0, -2)


def _values_and_gradients(
    folded: Folded,
    nodes: Sequence[fx.Node],
    state: State,
    images: Example,
    generator: torch.Generator,
    task: Task | None,
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Compute a network's values at some nodes, and the derivatives of a random mixture of its outputs by them."""
    with torch.enable_grad():
        inputs = map_tensors(_differentiable, images)
        # Where inputs are whole numbers, such as tokens, derivatives begin at the weights.
        fixed = not any(leaf.requires_grad for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
        plain = {
            key: tensor.detach().clone().requires_grad_(fixed and tensor.is_floating_point())
            for key, tensor in state.items()
        }
        output, values = folded.run(folded.maps(plain), plain, inputs, nodes)
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
        signs = (task or task_by_shape(output)).centred(signs)
        gradients = torch.autograd.grad((output * signs).sum(), values)
    return [value.detach() for value in values], gradients
