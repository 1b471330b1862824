"""Is a permuted copy of a network recognised? Its child with the network has to be the network.

    found = recognise(model, groups, example)

The copy is the network with all free groups permuted at random; nothing else differs, so that weights tell all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse import Recipe, fuse
from depfuse.fusion.parents import Parents
from depfuse.groups import ChannelGroups
from depfuse.groups.channel_group import random_permutations
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example, run_network

RECIPE = Recipe(
    align={"criterion": "weights", "solver": {"name": "emd", "restarts": 1}, "allow_fixed": True},
    refit="none",
    renorm="none",
)
SAME = 1e-4  # of the largest value: in float32, of tensors that were averaged with themselves, and of functions
SPREAD = 0.1  # of parameters that a network begins with as zeros


def recognise(
    model: nn.Module, groups: ChannelGroups, example: Example, seed: int = 0, recipe: Recipe = RECIPE
) -> dict[str, Any]:
    """Fuse a network with a permuted copy of it by weights.

    Parameters of one value, which no criterion could tell apart, are drawn at random first.

    Returns
    -------
    dict
        recovered
            1 where all tensors of the child, or its outputs on the example, are the network's; else 0.
        change
            Of the outputs, relative to the largest.
        missed
            The groups of which a tensor differs, by name.
    """
    draw_constants(model, seed)
    other = evaluation_copy(model)
    state = dict(model.state_dict())
    for name, order in random_permutations(groups, seed + 1).items():
        state = groups[name].permute(state, order)
    with torch.no_grad():
        for key, tensor in other.state_dict().items():
            tensor.copy_(state[key])
    child = fuse(Parents([model, other], example=example, groups=groups), recipe).child
    missed = _missed(groups, dict(child.state_dict()), dict(model.state_dict()))
    changed = change(model, child, example)
    return {"recovered": int(not missed or changed <= SAME), "change": changed, "missed": " ".join(missed)}


def draw_constants(model: nn.Module, seed: int) -> None:
    """Draw the parameters of which all entries are equal: of their own size, or of `SPREAD` where they are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.reshape(-1)
            if flat.numel() > 1 and parameter.is_floating_point() and bool((flat == flat[0]).all()):
                size = float(flat[0]) or SPREAD
                parameter.copy_(size * (0.5 + torch.rand(parameter.shape, generator=generator)))


def change(first: nn.Module, second: nn.Module, example: Example) -> float:
    """Measure the largest difference of two networks' outputs, relative to the largest output."""
    outputs = []
    for model in (first, second):
        torch.manual_seed(0)
        with torch.no_grad():
            leaves = tree_leaves(run_network(model.eval(), example))
        outputs.append([leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()])
    if [leaf.shape for leaf in outputs[0]] != [leaf.shape for leaf in outputs[1]]:
        return float("inf")
    scale = max((float(leaf.abs().max()) for leaf in outputs[0] if leaf.numel()), default=0.0)
    errors = [float((a - b).abs().max()) for a, b in zip(*outputs, strict=True) if a.numel()]
    return max(errors, default=0.0) / (scale or 1.0)


def _missed(groups: ChannelGroups, child: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> list[str]:
    """Name the groups of which a tensor of the child is not the network's."""

    def differs(key: str) -> bool:
        return not torch.allclose(child[key], original[key], rtol=SAME, atol=SAME * float(original[key].abs().max()))

    different = {key for key in {slot.key for group in groups.free for slot in group.slots} if differs(key)}
    return [group.name for group in groups.free if any(slot.key in different for slot in group.slots)]
