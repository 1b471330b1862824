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

    A group of which one slot has an effect needs no gradient of another. So gradients are those of vectors at first,
    biases and scales, and of the smallest parameter of a group that has none; the backward pass is half as long, and
    no large tensor is permuted. The step is along these. A second one gives those of all slots of what is left.

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
    if not network.decides:
        right = True
        for mode in reversed(network.modes):
            right = gradients.measure_light(mode) and right
            if gradients.shown:
                return gradients.effects, True
        if right and gradients.only_light:
            return gradients.effects, True
    whole = True
    for mode in network.modes:
        whole = gradients.measure(mode) and whole
        if gradients.shown:
            break
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
        self._keys = sorted(self._slots.keys() & network.parameters)
        self._light = sorted(_light_keys(groups, {key: network.state[key] for key in self._keys}))
        self._computed: dict[Mode, tuple[list[Tensor], list[Tensor | None]]] = {}
        self._after, self._after_light = _steps(network, self._keys), _steps(network, self._light)
        self._predicted: list[float] = []
        self._found: dict[str, float] = {}
        for key in self._keys:
            leaf = self._leaves[key].requires_grad_(True)
            leaf.register_post_accumulate_grad_hook(partial(self._note, key))  # type: ignore[no-untyped-call]

    @property
    def shown(self) -> bool:
        """True if every group has an effect."""
        return all(effect >= self._enough for effect in self.effects.values())

    @property
    def only_light(self) -> bool:
        """True if groups without an effect have no parameters but small ones."""
        silent = [name for name, effect in self.effects.items() if effect < self._enough]
        heavy = {name for key in set(self._keys) - set(self._light) for name, _ in self._slots[key]}
        return heavy.isdisjoint(silent)

    def measure_light(self, mode: Mode) -> bool:
        """Measure effects of small parameters on the outputs of a mode; tell whether their gradients are right."""
        try:
            outputs, directions = self._outputs(mode)
        except GroupError:
            return False
        leaves = [self._leaves[key] for key in self._light]
        return self._add_if_right(outputs, directions, lambda step: self._after_light(step, mode), leaves)

    def measure(self, mode: Mode) -> bool:
        """Measure effects on the outputs of a mode; tell whether the gradients of all of them are right."""
        try:
            outputs, directions = self._outputs(mode)
        except GroupError:
            return False
        del self._computed[mode]
        whole = True
        if self._network.decides:
            jumping = _jumping(outputs, {step: self._after(step, mode) for step in STEPS})
            whole = not any(jumping)
            directions = [None if jumps else along for jumps, along in zip(jumping, directions, strict=True)]
        order = sorted(
            (number for number, along in enumerate(directions) if along is not None),
            key=lambda number: outputs[number].grad_fn._sequence_nr() if outputs[number].grad_fn is not None else -1,  # type: ignore[union-attr]
        )

        def right(count: int) -> bool:
            chosen = set(order[:count])
            part = [along if number in chosen else None for number, along in enumerate(directions)]
            return self._add_if_right(outputs, part, lambda step: self._after(step, mode))

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

    def _outputs(self, mode: Mode) -> tuple[list[Tensor], list[Tensor | None]]:
        """Compute the outputs of a mode with gradients, and draw their directions, once."""
        if mode not in self._computed:
            outputs = self._network.differentiable(self._leaves, mode)
            self._computed[mode] = outputs, self._network.directions(outputs)
        return self._computed[mode]

    def _add_if_right(
        self,
        outputs: Sequence[Tensor],
        directions: Sequence[Tensor | None],
        after: Callable[[float], list[Tensor]],
        leaves: Sequence[Tensor] | None = None,
    ) -> bool:
        """Add effects on the outputs that have a direction where gradients are the function's; tell whether they are.

        Of `leaves` alone, or of all parameters in slots.
        """
        if not self._backward(outputs, directions, leaves):
            return False
        steps = list(STEPS)
        if leaves is not None:  # the shorter first, over which fewer rectified values change their sign
            steps = [step for step in reversed(STEPS) if self._tells(outputs, directions, step)]
        if not any(self._agrees(outputs, directions, after(step), step) for step in steps):
            return False
        self.effects = {name: max(effect, self._found[name]) for name, effect in self.effects.items()}
        return True

    def _backward(
        self, outputs: Sequence[Tensor], directions: Sequence[Tensor | None], leaves: Sequence[Tensor] | None
    ) -> bool:
        """Run a backward pass of the outputs that have a direction, to `leaves` or all; tell whether it ran."""
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
                torch.autograd.backward(scalar, retain_graph=leaves is not None or len(roots) > 1, inputs=leaves)
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
        error = abs((_projection(reached, directions) - before) / step - sum(self._predicted))
        return error <= self._slack + _rounding(outputs, directions, step)

    def _tells(self, outputs: Sequence[Tensor], directions: Sequence[Tensor | None], step: float) -> bool:
        """Tell whether rounding over a step cannot hide that gradients are wrong."""
        return _rounding(outputs, directions, step) <= self._slack

    @property
    def _slack(self) -> float:
        return SLACK * sum(map(abs, self._predicted))


def _light_keys(groups: Sequence[ChannelGroup], parameters: Mapping[str, Tensor]) -> set[str]:
    """Select each group's vectors among its parameters, and the smallest of them where it has none."""
    light: set[str] = set()
    for group in groups:
        keys = [slot.key for slot in group.slots if slot.key in parameters]
        vectors = {key for key in keys if sum(extent > 1 for extent in parameters[key].shape) <= 1}
        light |= vectors or {min(keys, key=lambda key: parameters[key].numel())} if keys else set()
    return light


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


def _rounding(outputs: Sequence[Tensor], directions: Sequence[Tensor | None], step: float) -> float:
    """Bound what rounding changes of a difference quotient of the outputs' projection."""
    size = _projection(
        [out.abs() for out in outputs], [along if along is None else along.abs() for along in directions]
    )
    return ROUNDING * size / step


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
