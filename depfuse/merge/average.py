"""The weighted average of aligned parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.merge.pruning_masks import masked, pruned_weights, unite_masks
from depfuse.merge.shares import Shares
from depfuse.merge.spectral_norms import SpectralNorms
from depfuse.merge.weight_norms import weight_norms, with_directions
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.real_state import real_state

FLOOR = 1e-6  # of the mean of a tensor's Fisher information


def average(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    shares: Shares | Sequence[float],
    labels: LabelSets | None = None,
    template: nn.Module | None = None,
    owners: Mapping[tuple[str, int], Tensor] | None = None,
    information: Sequence[Mapping[str, Tensor]] | None = None,
) -> nn.Module:
    r"""Average aligned parents: every tensor is :math:`\sum_p w_p \, T_p(\theta_p)`, in the channel order of parent 0.

    With Fisher information F it is :math:`\sum_p w_p F_p \theta_p / \sum_p w_p F_p`, entry by entry (Matena & Raffel
    2022, section 3): each entry follows the parents whose predictions it affects. A small constant is added to F, so
    that entries that affect none have the plain average. Complex weights are averaged as pairs of numbers, and weights
    with a spectral norm, a weight norm or a pruning mask as their layers compute with them.

    Parameters
    ----------
    models
        Parents with equal tensor shapes.
    groups
        Their channel groups.
    couplings
        One mapping (group name -> coupling) per parent.
    shares
        One weight w_p per parent, summing to one, of the whole network or of each tensor.
    labels
        The parents' label sets, where they differ.
    template
        A network with an output for each of these labels, to be filled; the tensors that give the parents' outputs come
        side by side in it.
    owners
        (key, axis) -> (length,) int64: the parent that alone gives the entries at a position, -1 where all do by
        their shares.
    information
        Per parent, the diagonal Fisher information of its parameters, in the order of its own channels; tensors that it
        does not hold, statistics above all, are averaged by their shares.

    Returns
    -------
    nn.Module
        A new network in eval mode; tensors that are not floating-point are those of parent 0.

    Raises
    ------
    RecipeError
        There is Fisher information, and a coupling is no permutation.
    """
    shares = Shares.create(shares)
    if information is not None and any(c.permutation is None for coupling in couplings for c in coupling.values()):
        raise RecipeError("Fisher-weighted averages need couplings that are permutations: choose solver emd, or mean")
    floors = {} if information is None else _floors(information)
    spectral, pruned = SpectralNorms(models, shares.of), pruned_weights(models[0])
    normed = weight_norms(models[0]) if not shares.of_one_parent else []
    merged: dict[str, Tensor] = {}
    totals: dict[str, Tensor] = {}
    for number, (model, coupling, _) in enumerate(zip(models, couplings, shares.network, strict=True)):
        counts = shares.count(number) or owners is not None
        own = with_directions(spectral.scaled(number, masked(real_state(model), pruned)), normed)
        state = apply_couplings(groups, coupling, own) if counts else own
        fisher = {}
        if information is not None and counts:
            fisher = apply_couplings(groups, coupling, {**own, **_of_pairs(information[number], own)})
        for key, tensor in state.items():
            share = shares.of(key)[number]
            if not tensor.is_floating_point():
                merged.setdefault(key, tensor)
            elif (share != 0 or owners is not None) and (key not in merged or merged[key].shape == tensor.shape):
                factor = _factor(key, tensor, number, share, owners or {})
                if key in floors:
                    factor = factor * (fisher[key].double() + floors[key])
                    totals[key] = totals.get(key, 0) + factor
                part = factor * tensor.double()
                merged[key] = merged[key] + part if key in merged else part
    merged |= {key: merged[key] / total for key, total in totals.items()}
    child = evaluation_copy(models[0] if template is None else template)
    if labels is not None:
        merged |= _side_by_side(models, groups, couplings, shares, labels, child)
    with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
        for key, tensor in real_state(child).items():
            tensor.copy_(merged[key])
        spectral.renew(child)
        unite_masks(child, pruned)
    return child


def _of_pairs(information: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the information of a complex entry to both numbers of its pair."""
    wider = {key: fisher.dim() < state[key].dim() for key, fisher in information.items()}
    return {key: own[..., None].expand_as(state[key]) if wider[key] else own for key, own in information.items()}


def _floors(information: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Compute the constant added to the Fisher information of each tensor that all parents have it for; never zero."""
    keys = [key for key in information[0] if all(key in fisher for fisher in information)]
    return {
        key: FLOOR * sum(float(fisher[key].double().mean()) for fisher in information) / len(information) + 1e-100
        for key in keys
    }


def _factor(
    key: str, tensor: Tensor, parent: int, share: float, owners: Mapping[tuple[str, int], Tensor]
) -> Tensor | float:
    """Compute the factor of a parent's tensor, to be broadcast over it: its share, or 0 or 1 where owners are given."""
    factor: Tensor | float = share
    for axis in range(tensor.dim()):
        owner = owners.get((key, axis))
        if owner is not None:
            number = owner.to(tensor.device).reshape(-1, *[1] * (tensor.dim() - 1 - axis))
            alone = (number == parent).to(torch.float64)
            factor = torch.where(number >= 0, alone, torch.as_tensor(factor, dtype=torch.float64, device=tensor.device))
    return factor


def _side_by_side(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    shares: Shares,
    labels: LabelSets,
    child: nn.Module,
) -> dict[str, Tensor]:
    """Join the tensors whose shape differs from some parent's: those of the output layers."""
    target = real_state(child)
    states = [real_state(model) for model in models]
    wide = [key for key, tensor in target.items() if any(state[key].shape != tensor.shape for state in states)]
    if not wide:
        return {}
    aligned = [apply_couplings(groups, coupling, state) for coupling, state in zip(couplings, states, strict=True)]
    return {
        key: labels.join_at(
            [state[key].double() for state in aligned], shares.of(key), labels.axis(key, target, states)
        )
        for key in wide
    }
