"""Generic values for a network: a symmetry that holds for them holds for every network of that architecture.

Special values would hide a missing slot: a zero scale, a unit variance, a layer scale of 1e-6 that hides a whole
branch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from depfuse.errors import GroupError
from depfuse.groups.channel_group import ChannelGroup, ChannelGroups
from depfuse.groups.deciding import DecidingWatch
from depfuse.groups.slots import Slot, permuted
from depfuse.groups.tracing.decisions import Decisions
from depfuse.groups.tracing.hidden import HiddenFlow, showing
from depfuse.networks.copying import evaluation_copy, unwrap
from depfuse.networks.forward import Example, run_with
from depfuse.networks.isolation import seeded, without_warnings
from depfuse.networks.precision import DoublePrecision
from depfuse.networks.running import evaluating, float_tensors, removing
from depfuse.progress import work
from depfuse.text import first_line

IMAGES = 2  # different inputs: a network may mix them
STEPS = 1e-8, 1e-9  # relative, of all parameters at once, to compare gradients with the function
SLACK = 1e-3  # of what the gradients predict for a step
ROUNDING = 1e-13  # of the outputs
SMALL = 0.1  # a vector whose entries are all smaller is brought to the size of 0.5


class Mode(NamedTuple):
    """How the network is run: with which auxiliary heads, and with which decision about inputs turned round."""

    auxiliary: Sequence[str] = ()
    turned: int | None = None


class GenericNetwork:
    """A copy of a network in float64, with every parameter and statistic moved off special values.

    In the draws after the first, the entries of each tensor are shuffled as well: other channels are silent then. In
    every second draw the vectors (biases among them) are not negative, so that rectified channels are seldom silent;
    and the tensors named in `damped` are brought to a tenth of their size from draw to draw, so that they do not
    saturate the next operation (the softmax of attention in a wide network).

    Attributes
    ----------
    state
        The network's tensors, by state-dict key.
    first
        The outputs of its first run, and the tensors that sizes are decided from (`deciding.py`).
    scale
        The largest entry of these, absolutely.
    overwritten
        Keys of the floating-point tensors that the forward pass itself writes.
    decides
        Whether the sizes of some tensors depend on the values of others, as in a detection network.
    random
        Whether a forward pass draws random numbers on the CPU, which it does from one seed.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        groups: ChannelGroups | None,
        seed: int,
        draw: int = 0,
        damped: Collection[str] = (),
    ) -> None:
        generator = self._generator = torch.Generator().manual_seed(seed + draw)
        self.name = type(unwrap(model)).__name__
        self._network = evaluation_copy(model, dtype=torch.float64)
        self.state: dict[str, Tensor] = dict(self._network.state_dict())
        for tensor in {id(tensor): tensor for tensor in self.state.values()}.values():
            if tensor.is_floating_point() and tensor.numel():
                _make_generic(tensor, generator)
                if draw:
                    shuffled = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                    tensor.copy_(tensor.reshape(-1)[shuffled].view_as(tensor))
                if draw % 2 and sum(extent > 1 for extent in tensor.shape) <= 1:
                    tensor.abs_()
        for key in damped:
            self.state[key].mul_(0.1**draw)
        self._seed, self.random, self.decides = seed + draw, False, False
        auxiliary, self._both_ways = (groups.auxiliary, groups.both_ways) if groups is not None else ((), False)
        self._modes = [Mode(), Mode(auxiliary)] if auxiliary else [Mode()]
        self._decisions = 0
        self._drawn: Callable[[Any], Any] = self._normal
        self.first, self.overwritten = self._started(example)
        self.scale = max(_sizes(self.first), default=0.0)

    def _started(self, example: Example) -> tuple[list[Tensor], frozenset[str]]:
        """Start on normal inputs, or on ones of the example's range where the network raises or is not finite there."""
        try:
            outputs, overwritten = self._start(example)
            if _usable(outputs):
                return outputs, overwritten
            failure = None
        except GroupError as error:
            failure = error
        # It may want inputs of the example's range: a logarithm, a power, an assertion, boxes within an image.
        self._drawn = self._within
        try:
            within = self._start(example)
        except GroupError as error:
            raise failure or error from error
        return within if failure is not None or _usable(within[0]) else (outputs, overwritten)

    def _start(self, example: Example) -> tuple[list[Tensor], frozenset[str]]:
        """Draw inputs, set the statistics to theirs, and run the network; return its outputs and the keys it writes."""
        self._inputs = self._several = tree_map(self._drawn, example)
        if self._both_ways and not self._decisions:
            self._outputs(self._inputs, self.state, Mode(), False)
            self._modes += [Mode((), turned) for turned in range(self._decisions)]
        self._set_statistics()
        self._separate()
        written = {key: _fingerprint(tensor) for key, tensor in self.state.items()}
        self._several = self._with_several(example)
        outputs = self._first_run()
        return outputs, frozenset(key for key, was in written.items() if _fingerprint(self.state[key]) != was)

    def _normal(self, leaf: Any) -> Any:
        """Draw normal values in the shape of an input; those that are not floating-point stay."""
        return self._draw(leaf, lambda shape: torch.randn(shape, generator=self._generator, dtype=torch.float64))

    def _within(self, leaf: Any) -> Any:
        """Draw values between the smallest and the largest of an input, from 0 to 1 where these are equal."""

        def uniform(shape: Sequence[int]) -> Tensor:
            low, high = (float(bound) for bound in leaf.aminmax()) if leaf.numel() else (0.0, 1.0)
            low, high = (low, high) if low < high else (0.0, 1.0)
            return torch.rand(shape, generator=self._generator, dtype=torch.float64) * (high - low) + low

        return self._draw(leaf, uniform)

    def _draw(self, leaf: Any, values: Callable[[Sequence[int]], Tensor]) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return values(leaf.shape).to(next(iter(self.state.values())).device if self.state else leaf.device)

    def _set_statistics(self) -> None:
        """Bring BatchNorm's statistics near those of its inputs: signals neither die out nor explode."""

        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values, mean, variance = inputs[0], module.running_mean, module.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(variance, Tensor)
            values = values.transpose(0, 1).flatten(1) if values.ndim > 1 else values
            if values.shape[1] > 1 and (spread := values.var(1)).min() > 0.0:
                noise = torch.rand((2, len(mean)), generator=self._generator, dtype=torch.float64).to(mean.device)
                mean.copy_(values.mean(1) + 0.2 * spread.sqrt() * (noise[0] - 0.5))
                variance.copy_(spread * (0.9 + 0.2 * noise[1]))

        handles = [
            module.register_forward_pre_hook(before)
            for module in self._network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.running_var, Tensor)
        ]
        with removing(handles):
            if handles:
                self.run()

    def _separate(self) -> None:
        """Give every name its own memory, tied tensors too: each is permuted in place by itself."""
        seen: set[int] = set()
        for key, tensor in self.state.items():
            if tensor.data_ptr() in seen:
                self.state[key] = tensor.clone()
            self.state[key] = self.state[key].contiguous()
            seen.add(tensor.data_ptr())

    def _with_several(self, example: Example) -> Any:
        """Make several different inputs where the example is one and the network supports more; else keep it."""
        tensors = [leaf for leaf in tree_leaves(self._inputs) if isinstance(leaf, Tensor)]
        if not tensors or any(leaf.dim() == 0 or leaf.shape[0] != 1 for leaf in tensors):
            return self._inputs

        def extended(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            repeated = leaf.repeat(IMAGES, *[1] * (leaf.dim() - 1))
            return self._drawn(repeated)

        return tree_map(extended, example)

    def _first_run(self) -> list[Tensor]:
        """Run several inputs, or one where the network supports only one, and return the outputs."""
        if self._several is not self._inputs:
            try:
                outputs = self.run()
                if _usable(outputs):
                    return outputs
            except GroupError:  # it is made for one input
                pass
            self._several = self._inputs
        return self.run()

    def run(self) -> list[Tensor]:
        """Compute all outputs, of all modes, for several inputs where supported."""
        return [output for mode in self._modes for output in self._outputs(self._several, self.state, mode, False)]

    def _outputs(self, inputs: Any, values: Mapping[str, Tensor], mode: Mode, gradient: bool) -> list[Tensor]:
        computed = [*values.values(), *float_tensors(inputs)]
        decisions = Decisions(inputs, computed, mode.turned) if self._both_ways else nullcontext()
        try:
            with (
                evaluating(self._network, auxiliary=mode.auxiliary),
                torch.set_grad_enabled(gradient),
                seeded(self._seed, next(iter(values.values())).device if values else torch.device("cpu")),
                decisions,
                DoublePrecision(),
                DecidingWatch() as watch,
            ):
                before = torch.get_rng_state()
                result = run_with(self._network, values, inputs, tied=False)
                self.random = self.random or not torch.equal(before, torch.get_rng_state())
                self.decides = self.decides or bool(watch.tensors)
                if isinstance(decisions, Decisions):
                    self._decisions = decisions.count
        except Exception as error:  # whatever the user's network raises
            raise GroupError(
                f"{self.name} cannot be run in float64, so that its groups cannot be proved: {first_line(error)}"
            ) from error
        work().advance()
        return [*float_tensors(result), *watch.tensors]

    def _scales_of(self, outputs: Sequence[Tensor]) -> list[float]:
        """Return by what a change of each output is divided: `scale` or, where sizes are decided, its largest entry.

        Scores and boxes, in pixels, are of different sizes.
        """
        return [size or 1.0 for size in _sizes(outputs)] if self.decides else [self.scale] * len(outputs)

    def change(self, reference: Sequence[Tensor] | None = None) -> float:
        """Run the network, and compute the largest absolute change of an output, relative to its scale.

        It is infinite where an output is not finite, or has another shape.
        """
        outputs, wanted = self.run(), self.first if reference is None else reference
        if [out.shape for out in outputs] != [out.shape for out in wanted]:
            return float("inf")
        errors = [
            float((a - b).abs().max()) / scale
            for a, b, scale in zip(wanted, outputs, self._scales_of(wanted), strict=True)
            if a.numel()
        ]
        largest = max(errors, default=0.0)
        return largest if all(error == error for error in errors) else float("inf")

    @contextmanager
    def reseeded(self, number: int) -> Iterator[None]:
        """Draw the network's own random numbers from another seed, within the context; 0 is the first one."""
        self._seed += number
        try:
            yield
        finally:
            self._seed -= number

    @contextmanager
    def changed(self, keys: Sequence[str]) -> Iterator[None]:
        """Double the entries of these tensors and reverse their order, within the context."""
        for key in keys:
            self.state[key].copy_(self.state[key].reshape(-1).flip(0).view_as(self.state[key]) * 2)
        try:
            yield
        finally:
            for key in keys:
                self.state[key].copy_(self.state[key].reshape(-1).flip(0).view_as(self.state[key]) / 2)

    def effects(
        self, groups: Sequence[ChannelGroup], permutations: Mapping[str, Tensor], enough: float
    ) -> tuple[dict[str, float], bool]:
        """Measure how much the outputs change, to first order, if one parameter's slot of a group is permuted alone.

        Returns group name -> the largest change, over its slots, of the outputs' projection on a random direction with
        entries of unit variance, from one backward pass for each mode; the other slots of a group with `enough` are not
        looked at. Each gradient is released at once.

        Returns as well whether the gradients are those of the function: a small step along them all changes the
        projection as they predict. They are not where a forward pass rounds and passes gradients on, or has none:
        a part without gradients, a tensor that is changed after it was used, a function without a backward pass.

        Where sizes are decided, outputs that jump over a small step are left out: what is sorted or chosen by scores,
        when two of these change places. What it is chosen from does not jump. Then, the answer is no: groups without
        an effect may have one on these. No group has an effect where the gradients are wrong.
        """
        largest = {group.name: 0.0 for group in groups}
        slots: dict[str, list[tuple[str, Slot]]] = defaultdict(list)
        for group in groups:
            for slot in group.slots:
                slots[slot.key].append((group.name, slot))
        predicted: list[float] = []

        def note(key: str, leaf: Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            assert gradient is not None
            predicted.append(float(torch.dot(gradient.reshape(-1), _step(self.state[key]))))
            for name, slot in slots[key]:
                if largest[name] >= enough:
                    continue
                entries = slot.read(self.state[key])
                change = slot.read(gradient) * (entries[permutations[name].to(entries.device)] - entries)
                largest[name] = max(largest[name], float(change.sum().abs()))

        leaves = {key: tensor.detach() for key, tensor in self.state.items()}
        keys = slots.keys() & {key for key, _ in self._network.named_parameters(remove_duplicate=False)}
        for key in sorted(keys):
            leaf = leaves[key].requires_grad_(True)
            leaf.register_post_accumulate_grad_hook(partial(note, key))  # type: ignore[no-untyped-call]
        before = size = 0.0
        along: list[list[Tensor | None]] = []
        whole = True

        @cache
        def after(step: float, mode: Mode) -> list[Tensor]:
            stepped = dict(self.state)
            for key in keys:
                stepped[key] = self.state[key].add(_step(self.state[key]).view_as(self.state[key]), alpha=step)
            return self._outputs(self._inputs, stepped, mode, False)

        for mode in self._modes:
            try:
                outputs = self._differentiable(leaves, mode)
            except GroupError:
                return {}, False
            directions: list[Tensor | None] = [
                torch.randn(out.shape, generator=self._generator, dtype=torch.float32).to(out).div_(scale)
                for out, scale in zip(outputs, self._scales_of(outputs), strict=True)
            ]
            if self.decides:
                jumping = _jumping(outputs, {step: after(step, mode) for step in STEPS})
                whole = whole and not any(jumping)
                directions = [None if jumps else along for jumps, along in zip(jumping, directions, strict=True)]
            along.append(directions)
            before += _projection(outputs, directions)
            size += _projection(
                [out.abs() for out in outputs], [along if along is None else along.abs() for along in directions]
            )
            differentiable = [
                pair for pair in zip(outputs, directions, strict=True) if pair[0].requires_grad and pair[1] is not None
            ]
            with without_warnings():  # its own thread has no CUDA context at first: torch makes one, and says so
                try:
                    torch.autograd.backward(
                        [out for out, _ in differentiable], [direction for _, direction in differentiable]
                    )
                except Exception:  # whatever a backward pass of the user's raises
                    return {}, False
        for step in STEPS:
            reached = sum(_projection(after(step, mode), part) for mode, part in zip(self._modes, along, strict=True))
            error_of = abs((reached - before) / step - sum(predicted))
            if error_of <= SLACK * sum(map(abs, predicted)) + ROUNDING * size / step:
                return largest, whole
        return {}, False

    def _differentiable(self, leaves: Mapping[str, Tensor], mode: Mode) -> list[Tensor]:
        """Compute outputs with gradients, through what a network hides from autograd too, where it runs so."""
        try:
            with showing(HiddenFlow()):
                return self._outputs(self._inputs, leaves, mode, True)
        except GroupError:
            return self._outputs(self._inputs, leaves, mode, True)

    def moved(self, slot: Slot, permutation: Tensor) -> AbstractContextManager[None]:
        """Permute one slot alone within the context."""
        return self._with(permuted(self.state, [([slot], permutation)]))

    def permuted(
        self, groups: Iterable[ChannelGroup], permutations: Mapping[str, Tensor]
    ) -> AbstractContextManager[None]:
        """Permute the channels of these groups within the context."""
        return self._with(permuted(self.state, [(group.slots, permutations[group.name]) for group in groups]))

    @contextmanager
    def _with(self, state: dict[str, Tensor]) -> Iterator[None]:
        before, self.state = self.state, state
        try:
            yield
        finally:
            self.state = before


def _step(tensor: Tensor) -> Tensor:
    """Choose a direction to step along: each entry by the one before it."""
    return tensor.reshape(-1).roll(1)


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


def _make_generic(tensor: Tensor, generator: torch.Generator) -> None:
    """Move each entry by a tenth of its tensor's scale, in place; non-negative tensors stay so.

    Weights too small to pass a signal on (depthwise ones, where they were drawn by fan-out) are enlarged.
    """
    low, high = (float(bound) for bound in tensor.aminmax())
    size = max(abs(low), abs(high))
    wanted = size
    if sum(extent > 1 for extent in tensor.shape) <= 1:
        wanted = size if size >= SMALL else 0.5
    elif size:
        gain = float(tensor.square().mean() * (tensor.numel() / tensor.shape[0])) ** 0.5
        wanted = size / min(gain, 1.0)
    if size:
        tensor.mul_(wanted / size)
        low, high = low * wanted / size, high * wanted / size
    size = wanted or 0.1
    spread = 0.5 * size if low == high else 0.1 * (high - low)
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
    tensor.add_(noise.sub_(0.0 if low >= 0.0 else 0.5).mul_(spread))


def _fingerprint(tensor: Tensor) -> tuple[float, float] | None:
    """Compute two sums by which a tensor's values are recognised; none where they are not floating-point."""
    return (float(tensor.sum()), float(tensor.abs().sum())) if tensor.is_floating_point() else None


def _sizes(outputs: Sequence[Tensor]) -> list[float]:
    """Compute the largest absolute entry of each output; 0 of an empty one."""
    return [float(out.detach().abs().max()) if out.numel() else 0.0 for out in outputs]


def _usable(outputs: Sequence[Tensor]) -> bool:
    """Tell whether all outputs are finite, and some are not zero."""
    return all(bool(output.isfinite().all()) for output in outputs) and any(bool(output.any()) for output in outputs)
