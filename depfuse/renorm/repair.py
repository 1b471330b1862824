r"""REPAIR: give the child's activations the statistics of its parents' (Jordan et al. 2023, section 4).

Where channels of dissimilar parents are averaged, they partly cancel: their variance collapses, layer after layer. The
smallest example is one linear layer. Its output y has mean m and standard deviation s over the images, while the
parents' outputs have means and deviations whose shares make :math:`\mu` and :math:`\sigma`. Then
:math:`y' = (y - m) \sigma / s + \mu` is again a linear layer, with weight :math:`W \sigma / s` and bias
:math:`(b - m) \sigma / s + \mu`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.distributed.team import all_sum
from depfuse.errors import RecipeError
from depfuse.merge.aligned import AlignedParents
from depfuse.merge.shares import Shares
from depfuse.networks.batch_norm import set_statistics_keeping_function
from depfuse.networks.forward import run_network
from depfuse.networks.running import Hook, evaluating, hooked
from depfuse.progress import work
from depfuse.renorm.layers import factors, find_layers, in_order
from depfuse.renorm.reset import AT_ONCE, BATCH_NORM


def repair(child: nn.Module, parents: AlignedParents, loader: Loader, *, shift: bool = True) -> None:
    """Give each layer's outputs the share-weighted mean and deviation of the parents', in place.

    A layer is a convolution or linear layer with the BatchNorm that follows it, or such a layer alone, or a BatchNorm
    alone. One pass over the images, in which each layer's input comes from corrected layers; then the correction
    is part of the weights, and BatchNorm layers have true running statistics. Output layers and layers that run more
    than once stay as they are.

    Parameters
    ----------
    child
        The merged network, of the parents' architecture.
    parents
        What it is merged of.
    loader
        Images; labels are not read.
    shift
        False to scale the outputs only ("rescale").

    Raises
    ------
    RecipeError
        There are fewer than two images, or a BatchNorm of another kind than torch's own.
    """
    method = "repair" if shift else "rescale"
    if loader.count < 2:
        raise RecipeError(f"renorm {method} needs at least 2 calibration images, not {loader.count}")
    loader = loader.in_batches(AT_ONCE)
    layers = find_layers(child, loader.example(2), f"renorm {method}")
    names = [layer.name for layer in layers if layer.times == 1 and layer.norm is None and not layer.gives_outputs]
    goals = {name: (torch.zeros((), dtype=torch.float32), torch.zeros((), dtype=torch.float32)) for name in names}
    shares = Shares.create(parents.shares)
    for number, (parent, coupling, _) in enumerate(
        zip(parents.networks, parents.couplings, shares.network, strict=True)
    ):
        seen = all_sum(_statistics, loader, parent, names)
        means = in_order(parent, parents.groups, coupling, {name: row.mean for name, row in seen.items()})
        deviations = in_order(parent, parents.groups, coupling, {name: row.deviation for name, row in seen.items()})
        share = {name: shares.of(f"{name}.weight")[number] for name in names}
        goals = {n: (mean + share[n] * means[n], sd + share[n] * deviations[n]) for n, (mean, sd) in goals.items()}
    corrections = {name: _Correction(*goals[name], shift) for name in names}
    collected = all_sum(_statistics, loader, child, names, corrections)
    with torch.no_grad():
        for name, correction in corrections.items():
            correction.write(child.get_submodule(name), collected[name])


rescale = partial(repair, shift=False)


def _statistics(
    loader: Loader, model: nn.Module, names: Sequence[str], corrections: Mapping[str, _Correction] | None = None
) -> tuple[dict[str, _Statistics], list[Tensor]]:
    """Collect statistics of layers in one pass in evaluation mode, correcting their outputs batch by batch."""
    statistics = {name: _Statistics() for name in names}

    def watch(name: str) -> Hook:
        correct = None if corrections is None else corrections[name].correct

        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            statistics[name].add(layer, inputs, output)
            return None if correct is None else correct(layer, output)

        return hook

    with torch.no_grad(), evaluating(model), hooked(model, {name: watch(name) for name in names}):
        for images, _ in work().within(loader, "collecting statistics of outputs"):
            run_network(model, images)
    return statistics, [tensor for collected in statistics.values() for tensor in collected.tensors]


def _rows(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Flatten the input or output of a layer to (samples, C), float64."""
    return tensor.detach().movedim(-1 if isinstance(layer, nn.Linear) else 1, -1).flatten(0, -2).double()


class _Statistics:
    """Mean and deviation of each channel of a layer's outputs (C,), float64, and for a BatchNorm of its inputs.

    Attributes
    ----------
    tensors
        The number of samples, and sums over them.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def add(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        """Add a batch."""
        flattened = [_rows(layer, output), *([_rows(layer, inputs[0])] if isinstance(layer, BATCH_NORM) else [])]
        count = torch.tensor(float(len(flattened[0])), dtype=torch.float64)
        sums = [count, *(sum_ for rows in flattened for sum_ in (rows.sum(0), rows.square().sum(0)))]
        self.tensors = [a + b for a, b in zip(self.tensors, sums, strict=True)] if self.tensors else sums

    def _moments(self, first: int) -> tuple[Tensor, Tensor]:
        count, *sums = self.tensors
        mean = sums[first] / count
        return mean, (sums[first + 1] / count - mean.square()).clamp_min(0.0)

    @property
    def mean(self) -> Tensor:
        """Mean of the outputs (C,)."""
        return self._moments(0)[0]

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the outputs (C,)."""
        return self._moments(0)[1].sqrt()

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of a BatchNorm's inputs (C,)."""
        return self._moments(2)


class _Correction:
    """A layer's target mean and deviation, with the affine map to them."""

    def __init__(self, mean: Tensor, deviation: Tensor, shift: bool) -> None:
        self._mean, self._deviation, self._shift = mean, deviation, shift

    def correct(self, layer: nn.Module, output: Tensor) -> Tensor:
        """Correct an output by this batch's own statistics."""
        rows = _rows(layer, output)
        scale, offset = self._map(layer, rows.mean(0), rows.std(0, correction=0))
        shape = [1] * output.dim()
        shape[-1 if isinstance(layer, nn.Linear) else 1] = -1
        return output * scale.reshape(shape).to(output.dtype) + offset.reshape(shape).to(output.dtype)

    def write(self, layer: Any, seen: _Statistics) -> None:
        """Write the correction over all images into the layer."""
        scale, offset = self._map(layer, seen.mean, seen.deviation)
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        if isinstance(layer, BATCH_NORM):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            set_statistics_keeping_function(
                weight, bias, layer.running_mean, layer.running_var, layer.eps, *seen.inputs
            )
        weight.mul_(scale.to(weight).reshape(-1, *[1] * (weight.dim() - 1)))
        if isinstance(bias, Tensor):
            bias.copy_(scale * bias.double() + offset)

    def _map(self, layer: Any, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scale and offset (C,) from a mean and deviation to the target's."""
        scale = factors(self._deviation, deviation)
        can_shift = self._shift and layer.bias is not None
        return scale, self._mean - scale * mean if can_shift else torch.zeros_like(scale)
