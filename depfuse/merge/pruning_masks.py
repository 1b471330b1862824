"""Masks of pruned weights (`torch.nn.utils.prune`), of which an average is no mask.

A pruned layer computes with weight times mask. Were both averaged, what one parent has pruned would count a quarter
where it should count half. So products are averaged, and the child keeps what any parent with a share keeps.
"""

from __future__ import annotations

from torch import Tensor, nn

from depfuse.networks.computed_weights import PRUNED, computed_weights


def pruned_weights(model: nn.Module) -> dict[str, str]:
    """Map the state-dict key of each pruned weight to that of its mask."""
    return {weight: mask for _, (weight, mask) in computed_weights(model, PRUNED)}


def masked(state: dict[str, Tensor], pruned: dict[str, str]) -> dict[str, Tensor]:
    """Replace weights by what their layers compute with."""
    return {**state, **{weight: state[weight] * state[mask] for weight, mask in pruned.items()}}


def unite_masks(child: nn.Module, pruned: dict[str, str]) -> None:
    """Make averaged masks masks again, in place: what any parent keeps is kept."""
    state = child.state_dict()
    for mask in pruned.values():
        state[mask].copy_(state[mask] > 0)
