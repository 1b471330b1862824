"""Decomposition of a network into its operations and the units that can be refitted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.data.inputs import Ragged, take_samples
from depfuse.data.loader import Loader
from depfuse.errors import ArchitectureError
from depfuse.networks.batch_norm import set_statistics_keeping_function
from depfuse.networks.copying import unwrap
from depfuse.networks.leaves import tensors_in
from depfuse.networks.memory_format import takes_channels_last
from depfuse.refit.program.graph import Program
from depfuse.refit.program.reuse import program_of
from depfuse.refit.program.units import Unit, find_units
from depfuse.refit.program.walk import Walk

AT_ONCE = 125  # images in a batch, of up to 32 x 32 pixels
OF_FEW = 8  # batches, or some fewer, where all images would be one: one is held out to compare the steps on the others
FEWEST = 8  # images in a batch
RENEWED_FROM = 1000  # images that BatchNorm statistics are taken from
_TINY = 1e-12  # epsilon of a BatchNorm that computes nothing but statistics
PIXELS_AT_ONCE = AT_ONCE * 32 * 32  # in a batch of larger images, of which there are at least 50


@dataclass(frozen=True, eq=False)
class DecomposedNetwork:
    """A network as a program, with the images that it is run on.

    Attributes
    ----------
    program
        The operations of the network, for batches of `size` images.
    units
        Its layers with their BatchNorms, in the order in which they run.
    state
        Its tensors, which are those of the network.
    loader
        The images in batches of `size`, in channels-last layout where the network supports it.
    at_once
        The images that steps may run the program on together: more than `size` where it holds for batches of any size
        and these are small because there are few images.
    """

    program: Program
    units: list[Unit]
    state: dict[str, Tensor]
    loader: Loader
    size: int
    at_once: int

    @classmethod
    def create(cls, network: nn.Module, images: Loader) -> DecomposedNetwork:
        """Decompose a network in eval mode.

        Raises
        ------
        ArchitectureError
            The network cannot be decomposed, see `Program`.
        """
        if isinstance(images.images, Ragged):
            raise ArchitectureError("samples of several shapes cannot be taken apart: give some of one shape")
        network = unwrap(network)
        last = takes_channels_last(network, images.example())
        loader = _in_small_batches(images, channels_last=last)
        size = loader.count // len(loader)
        program = program_of(network, take_samples(next(iter(loader))[0], slice(0, size)))
        few = program.any_size and images.count <= (most := _most_at_once(images))
        units, state = find_units(program, _shared(network)), dict(network.state_dict())
        return cls(program, units, state, loader, size, most if few else size)

    def renew_statistics(self) -> None:
        """Set every BatchNorm's statistics to those of its inputs without changing the network's function.

        The inputs are those for the first images, of which `RENEWED_FROM` are enough: the function does not depend on
        them.
        """
        walk = Walk(self.program, [self.state], self.loader)
        for unit in self.units:
            if unit.norm is None:
                continue
            norm, state = unit.norm, self.state
            assert norm.weight is not None
            assert norm.bias is not None
            mean, variance = _statistics(unit, walk)
            weight, bias = state[norm.weight], state[norm.bias]
            set_statistics_keeping_function(
                weight, bias, state[norm.mean], state[norm.variance], norm.epsilon, mean, variance
            )


def _statistics(unit: Unit, walk: Walk) -> tuple[Tensor, Tensor]:
    """Compute mean and variance (C,) of the input of the unit's BatchNorm."""
    source = unit.input if unit.weight is None else unit.node
    end = walk.position(unit.node) + (unit.weight is not None)
    count = 0
    total = square = torch.zeros((), dtype=torch.float64)
    batches = -(-RENEWED_FROM // walk.size)
    for values in walk.until([0] * (len(walk.states) - 1) + [end], [source], batches):
        value = values[-1][source]
        # The kernel of BatchNorm in training is several times faster than a variance over strided axes.
        _, part, deviation = torch.native_batch_norm(value, None, None, None, None, True, 0.0, _TINY)
        mean, variance = part.double(), (deviation.double() ** -2 - _TINY).clamp_min(0.0)
        size = value.numel() // value.shape[1]
        count += size
        total, square = total.to(mean) + size * mean, square.to(mean) + size * (variance + mean * mean)
    mean = total / count
    return mean, (square / count - mean * mean).clamp_min(0.0) * (count / max(1, count - 1))


def _in_small_batches(loader: Loader, *, channels_last: bool) -> Loader:
    """Divide images into batches of a size that depends on the images alone: programs and steps depend on it."""
    size = _most_at_once(loader)
    most = min(OF_FEW, loader.count // FEWEST)
    if loader.count <= size and most > 1:
        # Batches are of one size, and what remains is left out: as little as can be.
        parts = min(range(most, max(2, most // 2) - 1, -1), key=lambda parts: loader.count % parts)
        size = -(-loader.count // parts)
    small = Loader(loader.split, loader.preprocessing, batch_size=size, device=loader.device)
    small.channels_last = channels_last
    return small


def _most_at_once(loader: Loader) -> int:
    """Count the images of a batch that is as large as any may be."""
    leaves = tensors_in(loader.images)
    positions = max(leaf.shape[2:].numel() for leaf in leaves)
    return min(AT_ONCE, max(50, PIXELS_AT_ONCE // positions))


def _shared(network: nn.Module) -> set[str]:
    """List names of parameters that are one tensor under several names."""
    named = list(network.named_parameters(remove_duplicate=False))
    counts = Counter(id(tensor) for _, tensor in named)
    return {name for name, tensor in named if counts[id(tensor)] > 1}
