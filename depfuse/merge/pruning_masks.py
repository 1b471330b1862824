"""Masks of pruned weights (`torch.nn.utils.prune`), of which an average is no mask.

A pruned layer computes with weight times mask. Were both averaged, what one parent has pruned would count a quarter
where it should count half. So products are averaged, and the child keeps what any parent with a share keeps.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod


def pruned_weights(model: nn.Module) -> dict[str, str]:
    """Map the state-dict key of each pruned weight to that of its mask."""
    found = {}
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                key = f"{name}.{hook._tensor_name}" if name else hook._tensor_name
                found[f"{key}_orig"] = f"{key}_mask"
    return found


def masked(state: dict[str, Tensor], pruned: dict[str, str]) -> dict[str, Tensor]:
    """Replace weights by what their layers compute with."""
    return {**state, **{weight: state[weight] * state[mask] for weight, mask in pruned.items()}}


def unite_masks(child: nn.Module, pruned: dict[str, str]) -> None:
    """Make averaged masks masks again, in place: what any parent keeps is kept."""
    state = child.state_dict()
    for mask in pruned.values():
        state[mask].copy_(state[mask] > 0)
