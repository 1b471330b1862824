"""Generic values for a network: a symmetry that holds for them holds for every network of that architecture.

Special values would hide a missing slot: a zero scale, a unit variance, a layer scale of 1e-6 that hides a whole
branch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from depfuse.errors import GroupError
from depfuse.groups.channel_group import ChannelGroup, ChannelGroups
from depfuse.groups.deciding import DecidingWatch
from depfuse.groups.slots import Slot, permuted
from depfuse.groups.tracing.decisions import Decisions
from depfuse.groups.tracing.hidden import HiddenFlow, showing
from depfuse.networks.copying import evaluation_copy, unwrap
from depfuse.networks.forward import Example, run_with
from depfuse.networks.isolation import seeded
from depfuse.networks.leaves import tensors_in
from depfuse.networks.precision import DoublePrecision
from depfuse.networks.running import evaluating, float_tensors, removing
from depfuse.progress import work
from depfuse.text import first_line

INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm
IMAGES = 2  # different inputs: a network may mix them
PART = 2**16  # entries that are made generic at once
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
    modes
        How it is run: as it is, and with auxiliary heads or decisions turned round.
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
        self._learnt = [key for key, own in self._network.named_parameters(remove_duplicate=False) if own.requires_grad]
        self.state: dict[str, Tensor] = dict(self._network.state_dict())
        noise = np.random.Generator(np.random.SFC64(seed + draw))  # thrice as quick as torch's
        for tensor in {id(tensor): tensor for tensor in self.state.values()}.values():
            if tensor.is_floating_point() and tensor.numel():
                _make_generic(tensor, noise)
                if draw:
                    tensor.copy_(_shuffled(tensor.reshape(-1), generator).view_as(tensor))
                if draw % 2 and sum(extent > 1 for extent in tensor.shape) <= 1:
                    tensor.abs_()
        for key in damped:
            self.state[key].mul_(0.1**draw)
        self._seed, self.random, self.decides = seed + draw, False, False
        auxiliary, self._both_ways = (groups.auxiliary, groups.both_ways) if groups is not None else ((), False)
        self.modes = [Mode(), Mode(auxiliary)] if auxiliary else [Mode()]
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
        """Draw inputs, and run the network; return its outputs and the keys that it writes."""
        self._inputs = self._several = tree_map(self._drawn, example)
        if self._both_ways and not self._decisions:
            self._outputs(self._inputs, self.state, Mode(), False)
            self.modes += [Mode((), turned) for turned in range(self._decisions)]
        self._several = self._with_several(example)
        outputs, before = self._first_run()
        written = frozenset(key for key, was in before.items() if _fingerprint(self.state[key]) != was)
        self._separate()
        return outputs, written

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
        tensors = tensors_in(self._inputs)
        if not tensors or any(leaf.dim() == 0 or leaf.shape[0] != 1 for leaf in tensors):
            return self._inputs

        def extended(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            repeated = leaf.repeat(IMAGES, *[1] * (leaf.dim() - 1))
            return self._drawn(repeated)

        return tree_map(extended, example)

    def _first_run(self) -> tuple[list[Tensor], dict[str, tuple[float, float] | None]]:
        """Run several inputs, or one where the network supports only one; return the outputs, and what it started from.

        The latter are fingerprints of the network's tensors.
        """
        if self._several is not self._inputs:
            try:
                outputs, before = self._with_statistics()
                if _usable(outputs):
                    return outputs, before
            except GroupError:  # it is made for one input
                pass
            self._several = self._inputs
        return self._with_statistics()

    def _with_statistics(self) -> tuple[list[Tensor], dict[str, tuple[float, float] | None]]:
        """Run the network, and bring each norm's running statistics near those of its inputs where it is first called.

        So signals neither die out nor explode, and the outputs are those that the network has with these statistics.
        """
        before = {key: _fingerprint(tensor) for key, tensor in self.state.items()}
        keys: dict[int, list[str]] = defaultdict(list)
        for key, tensor in self.state.items():
            keys[id(tensor)].append(key)
        called: set[nn.Module] = set()

        def set_statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module in called:
                return
            called.add(module)
            values, mean, variance = inputs[0], module.running_mean, module.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(variance, Tensor)
            with torch._C.DisableTorchFunction():  # what is asked here is nothing for the other modes
                if isinstance(module, INSTANCE_NORM) and values.ndim == module._get_no_batch_dim():  # type: ignore[no-untyped-call]
                    values = values[None]
                values = values.transpose(0, 1).flatten(1) if values.ndim > 1 else values
                # Of one place of two images, values may be alike by chance: their spread would enlarge rounding errors.
                if values.shape[1] > IMAGES and (spread := values.var(1)).min() > 0.0:
                    noise = torch.rand((2, len(mean)), generator=self._generator, dtype=torch.float64).to(mean.device)
                    mean.copy_(values.mean(1) + 0.2 * spread.sqrt() * (noise[0] - 0.5))
                    variance.copy_(spread * (0.9 + 0.2 * noise[1]))
                    before.update({key: _fingerprint(own) for own in (mean, variance) for key in keys[id(own)]})

        handles = [
            module.register_forward_pre_hook(set_statistics)
            for module in self._network.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase) and isinstance(module.running_var, Tensor)
        ]
        with removing(handles):
            return self.run(), before

    def run(self) -> list[Tensor]:
        """Compute all outputs, of all modes, for several inputs where supported."""
        return [output for mode in self.modes for output in self._outputs(self._several, self.state, mode, False)]

    def _outputs(self, inputs: Any, values: Mapping[str, Tensor], mode: Mode, gradient: bool) -> list[Tensor]:
        computed = [*values.values(), *float_tensors(inputs)]
        decisions = Decisions(inputs, computed, mode.turned) if self._both_ways else nullcontext()
        try:
            with (
                evaluating(self._network, auxiliary=mode.auxiliary),
                torch.set_grad_enabled(gradient),
                nullcontext() if gradient else _as_parameters([values[key] for key in self._learnt if key in values]),
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

    @property
    def parameters(self) -> frozenset[str]:
        """State-dict keys of the parameters."""
        return frozenset(key for key, _ in self._network.named_parameters(remove_duplicate=False))

    def outputs_of_one(self, values: Mapping[str, Tensor], mode: Mode) -> list[Tensor]:
        """Compute the outputs of a mode for one input, with other values."""
        return self._outputs(self._inputs, values, mode, False)

    def differentiable(self, values: Mapping[str, Tensor], mode: Mode) -> list[Tensor]:
        """Compute the outputs of a mode for one input with gradients, through what a network hides from autograd."""
        try:
            with showing(HiddenFlow()):
                return self._outputs(self._inputs, values, mode, True)
        except GroupError:  # it does not run so
            return self._outputs(self._inputs, values, mode, True)

    def directions(self, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Draw a direction for each output, with entries of unit variance, relative to its scale."""
        return [
            torch.randn(out.shape, generator=self._generator, dtype=torch.float32).to(out).div_(scale)
            for out, scale in zip(outputs, self._scales_of(outputs), strict=True)
        ]

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


@contextmanager
def _as_parameters(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let tensors require gradients, as parameters do, within the context.

    By a weight that does not, torch multiplies a sequence that is not contiguous image by image.
    """
    for tensor in tensors:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)


def _make_generic(tensor: Tensor, generator: np.random.Generator) -> None:
    """Move each entry by a tenth of its tensor's scale, in place; non-negative tensors stay so.

    Weights too small to pass a signal on (depthwise ones, where they were drawn by fan-out) are enlarged.
    """
    low, high = (float(bound) for bound in tensor.aminmax())
    size = max(abs(low), abs(high))
    wanted = size
    if sum(extent > 1 for extent in tensor.shape) <= 1:
        wanted = size if size >= SMALL else 0.5
    elif size:
        gain = float(torch.linalg.vector_norm(tensor)) / tensor.shape[0] ** 0.5
        wanted = size / min(gain, 1.0)
    if size:
        tensor.mul_(wanted / size)
        low, high = low * wanted / size, high * wanted / size
    size = wanted or 0.1
    spread = 0.5 * size if low == high else 0.1 * (high - low)
    parts = torch.split(tensor.view(-1), PART) if tensor.is_contiguous() else (tensor,)
    noise = torch.empty(max(part.numel() for part in parts), dtype=torch.float64)
    for part in parts:  # while it lies in the cache
        own = noise[: part.numel()]
        generator.random(out=own.numpy())
        own = own.view(part.shape)
        part.add_(own.sub_(0.0 if low >= 0.0 else 0.5).mul_(spread).to(tensor.device))


def _shuffled(entries: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffle the entries of a tensor; roll those of a large one, of which a shuffle takes longer than a proof."""
    count = len(entries)
    if count > PART:
        return entries.roll(int(torch.randint(1, count, (), generator=generator)))
    return entries[torch.randperm(count, generator=generator).to(entries.device)]


def _fingerprint(tensor: Tensor) -> tuple[float, float] | None:
    """Compute two sums by which a tensor's values are recognised; none where they are not floating-point."""
    return (float(tensor.sum()), float(torch.linalg.vector_norm(tensor))) if tensor.is_floating_point() else None


def _sizes(outputs: Sequence[Tensor]) -> list[float]:
    """Compute the largest absolute entry of each output; 0 of an empty one."""
    return [float(out.detach().abs().max()) if out.numel() else 0.0 for out in outputs]


def _usable(outputs: Sequence[Tensor]) -> bool:
    """Tell whether all outputs are finite, and some are not zero."""
    return all(bool(output.isfinite().all()) for output in outputs) and any(bool(output.any()) for output in outputs)
