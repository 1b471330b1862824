"""The weighted average of aligned parents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.groups import ChannelGroups
from depfuse.groups.depgraph import evaluation_copy


def average(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    shares: Sequence[float],
) -> nn.Module:
    r"""Child whose every tensor is :math:`\sum_p w_p \, T_p(\theta_p)`, in the channel order of parent 0.

    Parameters
    ----------
    models
        Parents with equal tensor shapes.
    groups
        Their channel groups.
    couplings
        One mapping (group name -> coupling) per parent.
    shares
        One weight w_p per parent, summing to one.

    Returns
    -------
    nn.Module
        A new network in eval mode; tensors that are not floating-point are those of parent 0.
    """
    merged: dict[str, Tensor] = {}
    for model, found, share in zip(models, couplings, shares, strict=True):
        state = apply_couplings(groups, found, model.state_dict()) if share else model.state_dict()
        for key, tensor in state.items():
            if not tensor.is_floating_point():
                merged.setdefault(key, tensor)
            elif share:
                merged[key] = merged[key] + share * tensor.double() if key in merged else share * tensor.double()
    child = evaluation_copy(models[0])
    with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
        for key, tensor in child.state_dict().items():
            tensor.copy_(merged[key])
    return child
