"""All permutations of a tiny network's axes that keep its function, by trying them.

A symmetry permutes each axis of each tensor (outputs and inputs of layers, scales; not pixels or kernel positions) such
that the function stays the same. Grouped convolutions are written as dense ones whose weight is zero outside of its
blocks, so that their inputs, too, are one axis; what moves a zero is no symmetry.

The search fixes one permutation after the other. An axis that is not fixed yet is made constant: all its entries are
the first one's, so that every permutation of it does nothing. A partial choice that already changes the function then
cannot be completed. Normalisations are replaced by gates from the same means: the same permutations keep both, but what
does not change along channels would vanish in a normalisation. Choices that differ by a symmetry which is known and
leaves alone what is fixed are tried once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import permutations
from typing import Any

import torch
from random_networks import IMAGE, Attention, Drawn
from torch import Tensor, nn
from torch.func import functional_call, vmap

from depfuse.groups import ChannelGroups
from depfuse.groups.labels.classes import close
from depfuse.groups.labels.rules import Replay
from depfuse.groups.tracing.depgraph import trace

Axis = tuple[str, int]
Permutation = tuple[int, ...]
Symmetry = dict[Axis, Permutation]


class UndecidedError(Exception):
    """The search takes too long."""


def _layer(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return x * x.mean(-1, keepdim=True).sigmoid() * module.weight + module.bias


def _group(module: nn.GroupNorm, x: Tensor) -> Tensor:
    means = (
        x.unflatten(1, (module.num_groups, -1))
        .mean((2, 3, 4))
        .repeat_interleave(module.num_channels // module.num_groups, 1)
    )
    return x * means[..., None, None].sigmoid() * module.weight[:, None, None] + module.bias[:, None, None]


def _instance(module: nn.InstanceNorm2d, x: Tensor) -> Tensor:
    gated = x * x.mean((2, 3), keepdim=True).sigmoid()
    return gated if module.weight is None else gated * module.weight[:, None, None] + module.bias[:, None, None]


def _parametric(module: nn.PReLU, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * module.weight[:, None, None])  # its own function cannot be batched


PLAIN = {nn.LayerNorm: _layer, nn.GroupNorm: _group, nn.InstanceNorm2d: _instance, nn.PReLU: _parametric}
MOST_TRIED = 3000


class DenseNetwork:
    """A drawn network with dense convolutions and values without special relations."""

    def __init__(self, network: Drawn) -> None:
        self._network = copy.deepcopy(network).double().eval()
        self._groups = {}
        self._flattened = _flattened(network)
        for name, module in self._network.named_modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.groups > 1:
                self._groups[f"{name}.weight"] = module.groups
                module.groups = 1
            if isinstance(module, Attention):
                module.fused = False  # the same function, which can be batched
            if type(module) in PLAIN:
                module.forward = partial(PLAIN[type(module)], module)
        generator = torch.Generator().manual_seed(1)
        self.state = {}
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.2
                signs = torch.rand(tensor.shape, generator=generator) < 0.5
                self.state[key] = torch.where(signs & (not key.endswith("running_var")), -values, values)
        self.image = torch.randn(IMAGE, generator=generator, dtype=torch.float64)
        self.values = self.dense(self.state)
        ones = self.dense({key: torch.ones_like(tensor) for key, tensor in self.state.items()})
        self.masks = {key: ones[key] for key in self._groups}
        self.axes = [
            (key, axis)
            for key, tensor in self.values.items()
            for axis in self._inputs_first(key, tensor)
            if tensor.shape[axis] > 1
        ]

    def _inputs_first(self, key: str, tensor: Tensor) -> Sequence[int]:
        layer = self._network.get_submodule(key.rpartition(".")[0])
        return [0] if tensor.ndim == 1 else [0, 1] if isinstance(layer, nn.ConvTranspose2d) else [1, 0]

    def dense(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights (outputs, inputs, ...) without groups, those behind a flatten (outputs, channels, pixels)."""
        found = dict(state)
        for key, groups in self._groups.items():
            blocks = state[key].chunk(groups)
            moved = [block.movedim(1, 0) for block in blocks]  # a block's own axis first
            full = [torch.zeros(len(m) * groups, *m.shape[1:], dtype=m.dtype) for m in moved]
            for number, (part, block) in enumerate(zip(full, moved, strict=True)):
                part[number * len(block) : (number + 1) * len(block)] = block
            found[key] = torch.cat([part.movedim(0, 1) for part in full])
        for key, channels in self._flattened.items():
            found[key] = found[key].unflatten(1, (channels, -1))
        return found

    def outputs(self, values: Mapping[str, Tensor]) -> Tensor:
        """All outputs (n,) on dense tensors."""
        state = {key: tensor.flatten(1) if key in self._flattened else tensor for key, tensor in values.items()}
        found = functional_call(self._network, state, (self.image,))
        return torch.cat([output.reshape(-1) for output in (found if isinstance(found, tuple) else (found,))])


def _flattened(network: Drawn) -> dict[str, int]:
    """Weight behind a flatten -> the number of channels that were flattened."""
    values = network.values(torch.zeros(IMAGE))
    found = {}
    for number, (layer, inputs) in enumerate(network.steps, 1):
        if isinstance(network.layers[layer], nn.Flatten):
            readers = [step for step, taken in network.steps if taken == (number,)]
            found |= {f"layers.{reader}.weight": values[inputs[0]].shape[1] for reader in readers}
    return found


def symmetries_of(groups: ChannelGroups, network: DenseNetwork) -> list[Symmetry]:
    """The exchanges of two neighbouring channels of each free group, as permutations of dense axes."""
    count = 1
    marks = {}
    for key, tensor in network.state.items():
        marks[key] = torch.arange(count, count + tensor.numel()).reshape(tensor.shape)
        count += tensor.numel()
    before = network.dense(marks)
    found = []
    for group in groups.free:
        for channel in range(group.size - 1):
            order = torch.arange(group.size)
            order[[channel, channel + 1]] = order[[channel + 1, channel]]
            after = network.dense(group.permute(marks, order))
            symmetry = {(key, axis): _moved(before[key], after[key], axis) for key, axis in network.axes}
            found.append({axis: order for axis, order in symmetry.items() if order != tuple(range(len(order)))})
    return found


def _moved(before: Tensor, after: Tensor, axis: int) -> Permutation:
    rows = [[frozenset(row.flatten().tolist()) for row in tensor.unbind(axis)] for tensor in (before, after)]
    return tuple(rows[0].index(row) for row in rows[1])


def generated(size: int, generators: Iterable[Permutation]) -> set[Permutation]:
    """The group that permutations of `size` things generate."""
    generators = list(generators)
    found, new = {tuple(range(size))}, [tuple(range(size))]
    while new:
        first = new.pop()
        for second in generators:
            product = tuple(first[place] for place in second)
            if product not in found:
                found.add(product)
                new.append(product)
    return found


def representatives(candidates: Iterable[Permutation], known: set[Permutation]) -> list[Permutation]:
    """One of those candidates that differ by a known permutation alone."""
    found: list[Permutation] = []
    covered: set[Permutation] = set()
    for candidate in candidates:
        if candidate not in covered:
            found.append(candidate)
            covered |= {tuple(candidate[place] for place in order) for order in known}
    return found


class Search:
    """Finds symmetries of a network that known ones do not generate."""

    def __init__(self, network: DenseNetwork, known: Sequence[Symmetry], most: int = MOST_TRIED) -> None:
        self._network, self._known, self._most = network, known, most
        silent = {key for key in network.values if not self._has_effect(key)}
        self.axes = sorted((axis for axis in network.axes if axis[0] not in silent), key=self._is_vector)
        self.tried = 0

    def _is_vector(self, axis: Axis) -> bool:
        """For the order of the search: weights show most, each layer's inputs right after the outputs that it reads."""
        return self._network.values[axis[0]].ndim == 1

    def _has_effect(self, key: str) -> bool:
        network = self._network
        other = network.values | {key: network.values[key].flip(-1) + 0.3}
        if key in network.masks:
            other[key] = other[key] * network.masks[key]
        return not _same(network.outputs(network.values), network.outputs(other))

    def missing(self) -> list[Symmetry]:
        """For each axis, the symmetries by which it may be permuted in other ways than the known ones permute it."""
        found = []
        for axis in self.axes:
            size = self._size(axis)
            known = generated(size, [symmetry[axis] for symmetry in self._known if axis in symmetry])
            for order in representatives(permutations(range(size)), known)[1:]:
                symmetry = self._completed({axis: order}, [axis] + [other for other in self.axes if other != axis])
                if symmetry is not None:
                    found.append({key: value for key, value in symmetry.items() if value != tuple(range(len(value)))})
        return found

    def _size(self, axis: Axis) -> int:
        return self._network.values[axis[0]].shape[axis[1]]

    def _completed(self, chosen: Symmetry, axes: Sequence[Axis]) -> Symmetry | None:
        """A symmetry that agrees with what is chosen for the first axes; None where there is none."""
        axis = axes[len(chosen) - 1]
        if len(chosen) == 1 and not self._kept(axes[:1], {}, [chosen[axis]]):
            return None
        if len(chosen) == len(axes):
            return chosen
        axis = axes[len(chosen)]
        usable = [symmetry for symmetry in self._known if not symmetry.keys() & chosen.keys()]
        stabiliser = generated(self._size(axis), [symmetry[axis] for symmetry in usable if axis in symmetry])
        candidates = representatives(permutations(range(self._size(axis))), stabiliser)
        for order in self._kept([*chosen, axis], chosen, candidates):
            found = self._completed({**chosen, axis: order}, axes)
            if found is not None:
                return found
        return None

    def _kept(self, fixed: Sequence[Axis], chosen: Symmetry, candidates: Sequence[Permutation]) -> list[Permutation]:
        """Those candidates for the last of the fixed axes that do not change the function."""
        self.tried += len(candidates)
        if self.tried > self._most:
            raise UndecidedError
        network, (key, axis) = self._network, fixed[-1]
        reduced = {name: _constant(tensor, name, fixed) for name, tensor in network.values.items()}
        before = {name: tensor * network.masks.get(name, 1.0) for name, tensor in reduced.items()}
        for (name, place), order in chosen.items():
            reduced[name] = reduced[name].index_select(place, torch.tensor(order))
        after = {name: tensor * network.masks.get(name, 1.0) for name, tensor in reduced.items()}
        stacked = torch.stack([reduced[key].index_select(axis, torch.tensor(order)) for order in candidates])
        stacked = stacked * network.masks.get(key, 1.0)
        reference = network.outputs(before)
        found = vmap(lambda tensor: network.outputs({**after, key: tensor}))(stacked)
        return [
            order
            for order, outputs in zip(candidates, found, strict=True)
            if _same(outputs, reference) and self._keeps_zeros({**chosen, fixed[-1]: order}, key)
        ]

    def _keeps_zeros(self, chosen: Symmetry, key: str) -> bool:
        if key not in self._network.masks or not all((key, axis) in chosen for axis in (0, 1)):
            return True
        mask = self._network.masks[key]
        moved = mask[list(chosen[key, 0])][:, list(chosen[key, 1])]
        return torch.equal(moved, mask)


def _constant(tensor: Tensor, key: str, fixed: Sequence[Axis]) -> Tensor:
    """The tensor with the entries of the axes that are not fixed all alike."""
    for axis in range(min(tensor.ndim, 2)):
        if (key, axis) not in fixed:
            tensor = tensor.narrow(axis, 0, 1).expand_as(tensor)
    return tensor


def _same(first: Tensor, second: Tensor) -> Any:
    return bool((first - second).abs().max() <= 1e-10 * (1.0 + second.abs().max()))


def classes_of_positions(network: Drawn) -> dict[tuple[str, int, int], tuple[int, str | None]]:
    """(key, axis, position) -> its class, and why that, or the block that it lies in, is fixed."""
    replay = Replay(trace(network, torch.randn(IMAGE)))
    replay.run()
    classes = close(replay.ledger)
    reasons = dict(classes.reasons)
    for relation in classes.blocks:
        for member, block in relation.tolist():
            if block in classes.reasons:
                reasons.setdefault(member, classes.reasons[block])
    return {
        (key, factor.source[1], position): (member, reasons.get(member))
        for leaf, labels in replay.leaves.items()
        for key in replay.trace.leaves[leaf]
        for factor in labels.factors
        if factor.source is not None and len(factor.axes) == 1
        for position, member in enumerate(classes.of[factor.labels.flatten().numpy()].tolist())
    }
