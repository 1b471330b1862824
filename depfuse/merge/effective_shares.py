"""Find what soft couplings leave of the parents' shares."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.groups import ChannelGroups


def effective_shares(
    models: Sequence[nn.Module], groups: ChannelGroups, couplings: Sequence[Couplings], shares: Sequence[float]
) -> tuple[float, ...]:
    r"""Compute the parents' shares of the child's kernels, :math:`w_p r_p / \sum_q w_q r_q`.

    :math:`r_p` is the norm of a matched kernel of parent p by that before matching, the mean of all. A soft coupling
    averages channels, and those that differ cancel: its kernels get smaller, and count less than the recipe's shares
    :math:`w_p` say. Without plans, :math:`r_p` is 1: permutations keep norms, and maps are undone by the next layer.

    Parameters
    ----------
    models
        Parents with equal tensor shapes.
    groups
        Their channel groups.
    couplings
        One mapping (group name -> coupling) per parent.
    shares
        One per parent, summing to one.
    """
    parts = [
        share * _norm_left(model, groups, own) for model, own, share in zip(models, couplings, shares, strict=True)
    ]
    return tuple(part / sum(parts) for part in parts)


def _norm_left(model: nn.Module, groups: ChannelGroups, couplings: Couplings) -> float:
    if all(coupling.plan is None for coupling in couplings.values()):
        return 1.0
    state = model.state_dict()
    matched = apply_couplings(groups, couplings, state)
    ratios = [
        float(matched[name].norm() / norm)
        for name, tensor in state.items()
        if tensor.dim() > 1 and tensor.is_floating_point() and (norm := tensor.norm()) > 0
    ]
    return sum(ratios) / len(ratios) if ratios else 1.0
