"""Partitions of a network's tensors: by its stages, or by its channel groups."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from depfuse.groups.channel_group import ChannelGroups
from depfuse.networks.forward import Example
from depfuse.networks.stages import stages_of


def parts_by_stage(model: nn.Module, example: Example) -> dict[str, str]:
    """Map state-dict key -> `stage 1`, `stage 2`, ...: the stage of its layer (see `stages_of`).

    Where every layer is a stage of its own, normalisation and other layers without a matrix belong to the layer before
    them. Tensors of modules that do not run by themselves belong to the innermost module around them that does; those
    for which there is none are left out.

    Parameters
    ----------
    example
        An input (1, ...).
    """
    stages, count = stages_of(model, example)
    if count == len(stages):
        number = -1
        for name in stages:
            weights = list(model.get_submodule(name).parameters(False))
            number += number < 0 or any(weight.dim() > 1 for weight in weights)
            stages[name] = number
    parts = {}
    for key in model.state_dict():
        layer = key.rpartition(".")[0]
        while layer and layer not in stages:
            layer = layer.rpartition(".")[0]
        if layer in stages:
            parts[key] = f"stage {stages[layer] + 1}"
    return _with_tied(model, parts)


def parts_by_group(model: nn.Module, groups: ChannelGroups) -> dict[str, str]:
    """Map state-dict key -> name of the channel group, free or fixed, that the tensor produces or scales.

    A tensor that holds channels of several groups belongs to the one of which it holds most, and where they tie to the
    last of these in the network's order: with zero-padded shortcuts, to the channels that its own stage adds. Tensors
    in no group are left out.
    """
    counts: dict[str, dict[str, int]] = {}
    for group in groups:
        for slot in group.slots:
            if slot.role != "consumes":
                entries = counts.setdefault(slot.key, {})
                entries[group.name] = entries.get(group.name, 0) + slot.index.numel()
    parts = {}
    for key in model.state_dict():
        most = max(counts[key].values()) if key in counts else 0
        if most:
            parts[key] = [name for name, count in counts[key].items() if count == most][-1]
    return _with_tied(model, parts)


def _with_tied(model: nn.Module, reasons: Mapping[str, str]) -> dict[str, str]:
    """Give one tensor under several names the part of its first name."""
    first: dict[int, str] = {}
    state = model.state_dict()
    return {
        key: first.setdefault(state[key].data_ptr(), part) if state[key].numel() else part
        for key, part in reasons.items()
    }
