r"""BatchNorm's scales folded into the layers before, so that channels can be mixed by a linear map.

A BatchNorm multiplies each channel by its scale, :math:`g = w / \sqrt{v + \epsilon}`. A permutation carries the scales
along; a map T that mixes channels cannot, for T diag(g) is not a diagonal matrix times T. Folded into the rows of
the layer before it, they are mixed by T too, and the BatchNorm is only a shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example
from depfuse.renorm.layers import Layer, find_layers
from depfuse.renorm.reset import BATCH_NORM


def fold(
    models: Sequence[nn.Module], groups: ChannelGroups, example: Example, like: nn.Module
) -> tuple[list[nn.Module], ChannelGroups]:
    r"""Fold every BatchNorm's scale into the layer before it, in copies; return them and the groups still to be mixed.

    The layer's weights and bias and the running mean are multiplied by g. The BatchNorm then multiplies by one: its
    scale is the deviation :math:`\sigma = |w|` of its outputs in `like`, its variance
    :math:`\sigma^2 - \epsilon`. Both are the same in all copies, in the order of `like`, so that they stay while
    channels are mixed; when the statistics of an average are renewed, its channels have these deviations.

    Parameters
    ----------
    models
        Parents of one architecture and width; left as they are.
    groups
        Their channel groups.
    example
        An input (N, C, H, W) to see which BatchNorm follows which layer.
    like
        The network whose channels are the reference.

    Raises
    ------
    RecipeError
        A BatchNorm's input is not the output of one layer that runs once: there is no layer to fold its scale into.
    """
    layers_found = find_layers(models[0], example, "solver cca", "choose solver zip-it or emd")
    layers = [layer for layer in layers_found if _is_norm(models[0], layer.name)]
    for layer in layers:
        if layer.source is None or layer.times != 1 or _feeds_several(layers, layer):
            raise RecipeError(
                f"solver cca cannot mix the channels of {layer.name}: this BatchNorm takes more than the output of one"
                " layer, and its scale is each channel's own; choose solver zip-it or emd"
            )
    copies = [evaluation_copy(model) for model in models]
    reference = like.state_dict()
    with torch.no_grad():
        for layer in layers:
            epsilon = models[0].get_submodule(layer.name).eps
            assert isinstance(epsilon, float)
            deviation = reference[f"{layer.name}.weight"].double().abs().clamp_min(epsilon**0.5)
            for copy in copies:
                _fold(copy.state_dict(), layer, deviation, epsilon)
    still = {f"{layer.name}.{what}" for layer in layers for what in ("weight", "running_var")}
    mixable = tuple(
        replace(group, slots=tuple(slot for slot in group.slots if slot.key not in still)) for group in groups
    )
    return copies, replace(groups, groups=mixable)


def _fold(state: dict[str, Tensor], layer: Layer, deviation: Tensor, epsilon: float) -> None:
    weight, mean, variance = (state[f"{layer.name}.{what}"] for what in ("weight", "running_mean", "running_var"))
    factor = weight.double() / (variance.double() + epsilon).sqrt()
    for key in (f"{layer.source}.weight", f"{layer.source}.bias"):
        if key in state:
            tensor = state[key]
            tensor.copy_(tensor.double() * factor.reshape(-1, *[1] * (tensor.dim() - 1)))
    mean.copy_(mean.double() * factor)
    weight.copy_(deviation)
    variance.copy_(deviation.square() - epsilon)


def _is_norm(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), BATCH_NORM)


def _feeds_several(layers: Sequence[Layer], layer: Layer) -> bool:
    return sum(other.source == layer.source for other in layers) > 1
