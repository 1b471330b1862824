"""Effects of single slots on a network's outputs, to first order: by gradients that are compared with the function.

Gradients are not those of the function where a forward pass rounds and passes gradients on, or has none: a part without
gradients, a tensor that is changed after it was used, a function without a backward pass. A detector has one between
the boxes that it proposes and what it pools there: outputs computed before it have right gradients, those after it not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from depfuse.errors import GroupError
from depfuse.groups.channel_group import ChannelGroup
from depfuse.groups.generic_values import GenericNetwork, Mode
from depfuse.groups.slots import Slot
from depfuse.networks.derivatives import scalar_with
from depfuse.networks.isolation import without_warnings

STEPS = 1e-8, 1e-9  # relative, of all parameters at once, to compare gradients with the function
SLACK = 1e-3  # of what the gradients predict for a step
ROUNDING = 1e-13  # of the outputs

After = Callable[[float, Mode], list[Tensor]]


def first_order_effects(
    network: GenericNetwork, groups: Sequence[ChannelGroup], permutations: Mapping[str, Tensor], enough: float
) -> tuple[dict[str, float], bool]:
    """Measure how much the outputs change, to first order, if one parameter's slot of a group is permuted alone.

    One backward pass for each mode gives the change of the outputs' projection on a random direction, with entries of
    unit variance. A small step along all parameters has to change the projection as the gradients predict. Where it
    does not, those outputs are looked for, in the order in which they are computed, up to which it does.

    Where sizes are decided, outputs that jump over a small step are left out: what is sorted or chosen by scores, when
    two of these change places. What it is chosen from does not jump.

    Parameters
    ----------
    enough
        Of a group for which one slot has this effect, the others are not looked at.

    Returns
    -------
    dict of str to float
        Group name -> the largest change, over its slots, of outputs with right gradients.
    bool
        Whether these were all outputs: else a group without an effect may have one on another.
    """
    gradients = _Gradients(network, groups, permutations, enough)
    steps = _steps(network, gradients.keys)
    whole = True
    for mode in network.modes:
        whole = gradients.measure(mode, steps) and whole
    return gradients.effects, whole


def _steps(network: GenericNetwork, keys: Sequence[str]) -> After:
    """Make a function that runs the network after a step along these parameters."""

    @cache
    def after(step: float, mode: Mode) -> list[Tensor]:
        return network.outputs_of_one({**network.state, **{key: stepped(key, step) for key in keys}}, mode)

    def stepped(key: str, step: float) -> Tensor:
        tensor = network.state[key]
        result, entries = tensor.clone().reshape(-1), tensor.reshape(-1)
        result[1:].add_(entries[:-1], alpha=step)  # each entry by the one before it
        result[0].add_(entries[-1], alpha=step)
        return result.view_as(tensor)

    return after


class _Gradients:
    """Gradients of outputs with respect to the parameters in slots, each of which is released at once.

    Attributes
    ----------
    effects
        Group name -> the largest effect of its slots so far.
    keys
        The parameters in slots, by state-dict key.
    """

    def __init__(
        self,
        network: GenericNetwork,
        groups: Sequence[ChannelGroup],
        permutations: Mapping[str, Tensor],
        enough: float,
    ) -> None:
        self.effects = {group.name: 0.0 for group in groups}
        self._network, self._permutations, self._enough = network, permutations, enough
        self._slots: dict[str, list[tuple[str, Slot]]] = defaultdict(list)
        for group in groups:
            for slot in group.slots:
                self._slots[slot.key].append((group.name, slot))
        self._leaves = {key: tensor.detach() for key, tensor in network.state.items()}
        self.keys = sorted(self._slots.keys() & network.parameters)
        self._predicted: list[float] = []
        self._found: dict[str, float] = {}
        for key in self.keys:
            leaf = self._leaves[key].requires_grad_(True)
            leaf.register_post_accumulate_grad_hook(partial(self._note, key))  # type: ignore[no-untyped-call]

    def measure(self, mode: Mode, after: After) -> bool:
        """Measure effects on the outputs of a mode; tell whether the gradients of all of them are right."""
        try:
            outputs = self._network.differentiable(self._leaves, mode)
        except GroupError:
            return False
        directions: list[Tensor | None] = self._network.directions(outputs)
        whole = True
        if self._network.decides:
            jumping = _jumping(outputs, {step: after(step, mode) for step in STEPS})
            whole = not any(jumping)
            directions = [None if jumps else along for jumps, along in zip(jumping, directions, strict=True)]
        order = sorted(
            (number for number, along in enumerate(directions) if along is not None),
            key=lambda number: outputs[number].grad_fn._sequence_nr() if outputs[number].grad_fn is not None else -1,  # type: ignore[union-attr]
        )

        def right(count: int) -> bool:
            chosen = set(order[:count])
            part = [along if number in chosen else None for number, along in enumerate(directions)]
            if not self._backward(outputs, part):
                return False
            if not any(self._agrees(outputs, part, after(step, mode), step) for step in STEPS):
                return False
            self.effects = {name: max(effect, self._found[name]) for name, effect in self.effects.items()}
            return True

        if right(len(order)):
            return whole
        passing, failing = 0, len(order)
        while failing - passing > 1:
            middle = (passing + failing) // 2
            if right(middle):
                passing = middle
            else:
                failing = middle
        return False

    def _backward(self, outputs: Sequence[Tensor], directions: Sequence[Tensor | None]) -> bool:
        """Run a backward pass of the outputs that have a direction; tell whether it ran."""
        self._predicted, self._found = [], dict.fromkeys(self.effects, 0.0)
        roots = [
            (output, direction)
            for output, direction in zip(outputs, directions, strict=True)
            if output.requires_grad and direction is not None
        ]
        if not roots:
            return True
        with without_warnings():  # its own thread has no CUDA context at first: torch makes one, and says so
            try:
                scalar = scalar_with([direction for _, direction in roots], [output for output, _ in roots])
                torch.autograd.backward(scalar, retain_graph=len(roots) > 1)
            except Exception:  # whatever a backward pass of the user's raises
                return False
        return True

    def _note(self, key: str, leaf: Tensor) -> None:
        """Note what a parameter's gradient says of a step, and of its slots."""
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        tensor = self._network.state[key]
        entries, slopes = tensor.reshape(-1), gradient.reshape(-1)
        self._predicted.append(float(torch.dot(slopes[1:], entries[:-1]) + slopes[0] * entries[-1]))
        for name, slot in self._slots[key]:
            if max(self.effects[name], self._found[name]) < self._enough:
                effect = _effect(slot, tensor, gradient, self._permutations[name])
                self._found[name] = max(self._found[name], effect)

    def _agrees(
        self, outputs: Sequence[Tensor], directions: Sequence[Tensor | None], reached: Sequence[Tensor], step: float
    ) -> bool:
        """Tell whether the outputs, projected on directions, changed over a step as the gradients predict."""
        before = _projection(outputs, directions)
        size = _projection(
            [out.abs() for out in outputs], [along if along is None else along.abs() for along in directions]
        )
        error = abs((_projection(reached, directions) - before) / step - sum(self._predicted))
        return error <= SLACK * sum(map(abs, self._predicted)) + ROUNDING * size / step


def _effect(slot: Slot, tensor: Tensor, gradient: Tensor, permutation: Tensor) -> float:
    """Compute the change, to first order, when a slot's channels are permuted in a tensor with this gradient."""
    if slot.covers(tensor):
        change = slot.permute(tensor, permutation).sub_(tensor)
        return abs(float(torch.dot(gradient.reshape(-1), change.reshape(-1))))
    entries = slot.read(tensor)
    change = slot.read(gradient) * (entries[permutation.to(entries.device)] - entries)
    return float(change.sum().abs())


def _projection(outputs: Sequence[Tensor], directions: Sequence[Tensor | None]) -> float:
    """Sum the outputs, weighted by directions, those with one; not a number where an output has another shape now."""
    weighted = [(out, along) for out, along in zip(outputs, directions, strict=False) if along is not None]
    if len(outputs) != len(directions) or any(out.shape != along.shape for out, along in weighted):
        return float("nan")
    return sum(float((out.detach() * along).sum()) for out, along in weighted)


def _jumping(outputs: Sequence[Tensor], after: Mapping[float, Sequence[Tensor]]) -> list[bool]:
    """Tell of each output whether it jumps: its change over the largest step is not as many times that over another."""
    if any(len(reached) != len(outputs) for reached in after.values()):
        return [True] * len(outputs)
    jumps = []
    for number, out in enumerate(outputs):
        if any(reached[number].shape != out.shape for reached in after.values()):
            jumps.append(True)
            continue
        rates = [(reached[number] - out.detach()) / step for step, reached in after.items()]
        rounding = 10.0 * ROUNDING * float(out.detach().abs().amax()) / min(after) if out.numel() else 0.0
        apart = max((float((rate - rates[0]).abs().max()) for rate in rates if rate.numel()), default=0.0)
        largest = max((float(rate.abs().max()) for rate in rates if rate.numel()), default=0.0)
        jumps.append(not apart <= 0.1 * largest + rounding)
    return jumps
