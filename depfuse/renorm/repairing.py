r"""REPAIR: the child's activations get the statistics that its parents' have (Jordan et al. 2023, section 4).

Where channels of parents that are not alike are averaged, they cancel: their variance collapses, layer after layer. The
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

from depfuse.align.coupling import Couplings
from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.merge.shares import Shares
from depfuse.renorm.batch_norm import BATCH_NORM
from depfuse.renorm.layers import Hook, factors, find_layers, hooked, in_order
from depfuse.restating import restate
from depfuse.running import evaluating


def repair(
    child: nn.Module,
    parents: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    shares: Shares | Sequence[float],
    loader: Loader,
    *,
    shift: bool = True,
) -> None:
    """Give each layer's outputs the share-weighted mean and deviation of the parents', in place.

    A layer is a convolution or linear layer with the BatchNorm that follows it, or such a layer alone, or a BatchNorm
    alone. One pass over the images, in which each layer sees what the corrected layers before it give; then the
    correction is part of the weights, and BatchNorm layers have true running statistics. What gives the network's
    outputs stays as it is, and so do layers that run more than once.

    Parameters
    ----------
    child
        The merged network, of the parents' architecture.
    parents, groups, couplings, shares
        As they were merged.
    loader
        Images; labels are not read.
    shift
        Without it, outputs are scaled only ("rescale").

    Raises
    ------
    RecipeError
        There are fewer than two images, or a BatchNorm of another kind than torch's own.
    """
    method = "repair" if shift else "rescale"
    if loader.count < 2:
        raise RecipeError(f"renorm {method} needs at least 2 calibration images, not {loader.count}")
    layers = find_layers(child, next(iter(loader))[0][:2], f"renorm {method}")
    names = [own.name for own in layers if own.times == 1 and own.norm is None and not own.gives_outputs]
    goals = {name: (torch.zeros(()), torch.zeros(())) for name in names}
    shares = Shares.create(shares)
    for number, (parent, coupling, _) in enumerate(zip(parents, couplings, shares.network, strict=True)):
        seen = {name: _Statistics(parent.get_submodule(name)) for name in names}
        _run(parent, loader, {name: own.watch for name, own in seen.items()})
        means = in_order(parent, groups, coupling, {name: own.mean for name, own in seen.items()})
        deviations = in_order(parent, groups, coupling, {name: own.deviation for name, own in seen.items()})
        own = {name: shares.of(f"{name}.weight")[number] for name in names}
        goals = {n: (mean + own[n] * means[n], sd + own[n] * deviations[n]) for n, (mean, sd) in goals.items()}
    corrections = {name: _Correction(child.get_submodule(name), *goals[name], shift) for name in names}
    _run(child, loader, {name: correction.correct for name, correction in corrections.items()})
    with torch.no_grad():
        for correction in corrections.values():
            correction.write()


rescale = partial(repair, shift=False)


class _Statistics:
    """Mean and deviation of each channel of a layer's outputs (C,), float64, and for a BatchNorm of its inputs."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._axis = -1 if isinstance(layer, nn.Linear) else 1
        self._count = 0
        self._sums: list[Tensor] = []

    def watch(self, _module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Count a batch."""
        found = [self.rows(output), *([self.rows(inputs[0])] if isinstance(self.layer, BATCH_NORM) else [])]
        sums = [sum_ for rows in found for sum_ in (rows.sum(0), rows.square().sum(0))]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._count += len(found[0])

    def rows(self, tensor: Tensor) -> Tensor:
        """(samples, C), float64."""
        return tensor.detach().movedim(self._axis, -1).flatten(0, -2).double()

    def _moments(self, first: int) -> tuple[Tensor, Tensor]:
        mean = self._sums[first] / self._count
        return mean, (self._sums[first + 1] / self._count - mean.square()).clamp_min(0.0)

    @property
    def mean(self) -> Tensor:
        """Of the outputs."""
        return self._moments(0)[0]

    @property
    def deviation(self) -> Tensor:
        """Of the outputs."""
        return self._moments(0)[1].sqrt()

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of a BatchNorm's inputs."""
        return self._moments(2)


class _Correction:
    """One layer of the child, on its way to its goal."""

    def __init__(self, layer: Any, mean: Tensor, deviation: Tensor, shift: bool) -> None:
        self._layer, self._mean, self._deviation, self._shift = layer, mean, deviation, shift
        self._seen = _Statistics(layer)

    def correct(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """The output as it would be with this batch's own correction; counts the batch."""
        self._seen.watch(module, inputs, output)
        rows = self._seen.rows(output)
        scale, offset = self._map(rows.mean(0), rows.std(0, correction=0))
        shape = [1] * output.dim()
        shape[-1 if isinstance(self._layer, nn.Linear) else 1] = -1
        return output * scale.reshape(shape).to(output.dtype) + offset.reshape(shape).to(output.dtype)

    def write(self) -> None:
        """Make the correction over all images part of the layer."""
        scale, offset = self._map(self._seen.mean, self._seen.deviation)
        weight, bias = self._layer.weight, self._layer.bias
        assert isinstance(weight, Tensor)
        if isinstance(self._layer, BATCH_NORM):
            own = self._layer
            assert own.running_mean is not None
            assert own.running_var is not None
            restate(weight, bias, own.running_mean, own.running_var, own.eps, *self._seen.inputs)
        weight.mul_(scale.to(weight).reshape(-1, *[1] * (weight.dim() - 1)))
        if isinstance(bias, Tensor):
            bias.copy_(scale * bias.double() + offset)

    def _map(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset (C,) that lead from a mean and deviation to the goal's."""
        scale = factors(self._deviation, deviation)
        can_shift = self._shift and self._layer.bias is not None
        return scale, self._mean - scale * mean if can_shift else torch.zeros_like(scale)


def _run(model: nn.Module, loader: Loader, hooks: Mapping[str, Hook]) -> None:
    """One pass over the images, in evaluation mode, with forward hooks."""
    with torch.no_grad(), evaluating(model), hooked(model, hooks):
        for images, _ in loader:
            model(images)
