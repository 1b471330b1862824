"""The weighted average of aligned parents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.groups import ChannelGroups
from depfuse.groups.depgraph import evaluation_copy
from depfuse.label_sets import LabelSets


def average(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    shares: Sequence[float],
    labels: LabelSets | None = None,
    template: nn.Module | None = None,
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
    labels
        Which labels the parents' outputs stand for, where they differ.
    template
        A network with an output for each of these labels, to be filled; the tensors that give the parents' outputs come
        side by side in it.

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
            elif share and (key not in merged or merged[key].shape == tensor.shape):
                merged[key] = merged[key] + share * tensor.double() if key in merged else share * tensor.double()
    child = evaluation_copy(models[0] if template is None else template)
    if labels is not None:
        merged |= _side_by_side(models, groups, couplings, shares, labels, child)
    with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
        for key, tensor in child.state_dict().items():
            tensor.copy_(merged[key])
    return child


def _side_by_side(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    shares: Sequence[float],
    labels: LabelSets,
    child: nn.Module,
) -> dict[str, Tensor]:
    """The child's tensors that have another shape than some parent's: those that give the outputs."""
    own = child.state_dict()
    states = [model.state_dict() for model in models]
    wide = [key for key, tensor in own.items() if any(state[key].shape != tensor.shape for state in states)]
    if not wide:
        return {}
    aligned = [apply_couplings(groups, found, state) for found, state in zip(couplings, states, strict=True)]
    return {
        key: labels.join([state[key].double() for state in aligned], shares, labels.axis(key, own, states))
        for key in wide
    }
