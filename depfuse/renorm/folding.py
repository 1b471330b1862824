r"""BatchNorm's scales folded into the layers before, so that channels can be mixed by a linear map.

A BatchNorm multiplies each channel with a number of its own, :math:`g = w / \sqrt{v + \epsilon}`. A permutation carries
these numbers along; a map T that mixes channels cannot, for T diag(g) is no diagonal times T. Folded into the rows of
the layer before it, they are part of what T mixes, and what is left of the BatchNorm is a shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.tracing.depgraph import evaluation_copy
from depfuse.renorm.batch_norm import BATCH_NORM
from depfuse.renorm.layers import Layer, find_layers


def fold(
    models: Sequence[nn.Module], groups: ChannelGroups, example: Tensor, like: nn.Module
) -> tuple[list[nn.Module], ChannelGroups]:
    r"""Copies with every BatchNorm's scale in the layer before it, and the groups of what may still be mixed in them.

    The layer's weights and bias and the running mean are multiplied with g. The BatchNorm then multiplies with one: as
    scale it has the deviation :math:`\sigma = |w|` that its outputs have in `like`, and as variance
    :math:`\sigma^2 - \epsilon`. It is the same in all copies and in the order of `like`, so that it stands still while
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
        The network to whose channels others will be mixed.

    Raises
    ------
    RecipeError
        A BatchNorm takes anything but the output of one layer that runs once: its scale has nowhere to go.
    """
    found = find_layers(models[0], example, "solver cca", "choose solver zip-it or emd")
    layers = [own for own in found if _is_norm(models[0], own.name)]
    for own in layers:
        if own.source is None or own.times != 1 or _feeds_several(layers, own):
            raise RecipeError(
                f"solver cca cannot mix the channels of {own.name}: this BatchNorm takes more than the output of one"
                " layer, and its scale is each channel's own; choose solver zip-it or emd"
            )
    copies = [evaluation_copy(model) for model in models]
    reference = like.state_dict()
    with torch.no_grad():
        for own in layers:
            epsilon = models[0].get_submodule(own.name).eps
            assert isinstance(epsilon, float)
            deviation = reference[f"{own.name}.weight"].double().abs().clamp_min(epsilon**0.5)
            for copy in copies:
                _fold(copy.state_dict(), own, deviation, epsilon)
    still = {f"{own.name}.{what}" for own in layers for what in ("weight", "running_var")}
    kept = tuple(replace(group, slots=tuple(slot for slot in group.slots if slot.key not in still)) for group in groups)
    return copies, replace(groups, groups=kept)


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
    return sum(own.source == layer.source for own in layers) > 1
