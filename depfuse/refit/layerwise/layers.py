"""Refit of the child's layers in closed form, one after another, towards the parents' outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import ArchitectureError, RecipeError
from depfuse.groups import ChannelGroups
from depfuse.merge.aligned import AlignedParents
from depfuse.merge.average import average
from depfuse.merge.shares import Shares
from depfuse.networks.copying import evaluation_copy, unwrap
from depfuse.recipe.refits import Refit, RegMean, Ridge
from depfuse.refit.layerwise.unit_solver import UnitSolver
from depfuse.refit.program.decomposition import DecomposedNetwork
from depfuse.refit.second_order.session import Session


def refit_layers(
    child: nn.Module,
    parents: AlignedParents,
    calibration: Loader,
    settings: Refit,
    *,
    ensemble: Ensemble | None = None,
    seed: int = 0,
    held: Loader | None = None,
) -> Session | None:
    """Solve the layers of a merged network in closed form for its parents' outputs, in place.

    A unit is a convolution or linear layer with its BatchNorm; each is solved by ridge regression towards the merged
    weights (`layerwise.ridge`). Layers that are not linear in their weights stay merged.

    `ridge` goes from input to output. A unit is solved from the child's own input, computed by the refitted units
    before it, for the mixture of the parents' outputs; where its output is added to a stream, for the mixture of the
    parents' streams minus the child's own stream, so that later units correct errors of earlier ones. BatchNorm
    statistics are those of the images. Targets `matched`: a channel of the child is the mean of the parents' matched
    channels; `clusters`: a mixture of channels of all parents, see `find_mixtures`. Steps of all units together
    towards the ensemble's outputs follow, see `SecondPass`.

    `regmean` solves every unit by itself, from each parent's inputs for that parent's outputs, jointly over parents
    (Jin et al. 2023, section 3; with patches for convolutions); `least-squares` from the mean of the parents' inputs
    for the mean of their outputs (PLeaS, Nasery et al. 2024, section 3.2). Both leave BatchNorm to be reset.

    Where the parents' shares differ from layer to layer, every unit is solved for the mixture by its own shares; the
    mean of inputs uses those of the unit that computes them, and the ensemble of the second pass those of the network.

    Parameters
    ----------
    child
        The average of the aligned parents, in eval mode.
    parents
        The parents; their couplings must be permutations.
    calibration
        Unlabelled training images.
    settings
        The method, `ridge` with its targets, steps and augmentation.
    ensemble
        What the parents' outputs are together: their label sets, their joint head and their task are read.
    held
        Images that choose the best of these steps; some of the others where None.

    Returns
    -------
    Session or None
        After `ridge`, the child while it learns the ensemble's outputs and the parents' streams, to be trained further.

    Raises
    ------
    RecipeError
        A coupling is not a permutation, or the settings are those of no method.
    ArchitectureError
        The network cannot be decomposed, see `Program`.
    """
    if not settings.closed_form:
        raise RecipeError(f"refit {settings.name} solves no layers: give settings of ridge, regmean or least-squares")
    if not parents.permuted:
        raise RecipeError("refitting needs couplings that are permutations: choose solver emd, or refit none")
    with torch.no_grad():
        ensemble = ensemble or Ensemble((), ())
        run = UnitSolver(child, parents.states(), Shares.create(parents.shares), calibration, ensemble, seed)
        if isinstance(settings, Ridge):
            augment = calibration.suited_augmentation if settings.augment else Augmentation()
            clustered = parents.groups if settings.targets == "clusters" else None
            return run.forward(clustered, settings.steps, augment, held)
        run.in_parallel(pooled=isinstance(settings, RegMean))
        return None


def refit_heads(
    models: Sequence[nn.Module],
    shares: Sequence[float],
    calibration: Loader,
    *,
    labels: LabelSets | None = None,
    template: nn.Module | None = None,
) -> list[nn.Module]:
    """Copy every parent and solve its last layer for the logits of the ensemble of all parents.

    A child is worth having only if it surpasses these networks. All are solved in one pass over the images.

    Parameters
    ----------
    models, shares
        The parents, and one weight for each.
    calibration, labels
        As for `refit_layers`.
    template
        A network with an output for each label, where they differ.

    Raises
    ------
    RecipeError
        The layer that gives the logits cannot be refitted.
    ArchitectureError
        The network cannot be decomposed, see `Program`, or not at the widths of all parents.
    """
    children = [_of_all_labels(models, number, labels, template) for number in range(len(models))]
    states = [model.state_dict() for model in models]
    try:
        with torch.no_grad():
            run = UnitSolver(children[0], states, Shares.create(shares), calibration, Ensemble((), (), labels), 0)
            run.heads([dict(unwrap(child).state_dict()) for child in children])
    except RuntimeError as error:
        shapes = [{key: tensor.shape for key, tensor in state.items()} for state in states]
        if labels is not None or all(shape == shapes[0] for shape in shapes):
            raise
        raise ArchitectureError(f"the network's operations depend on its width: {error}") from None
    return children


def _of_all_labels(
    models: Sequence[nn.Module], number: int, labels: LabelSets | None, template: nn.Module | None
) -> nn.Module:
    """Copy one parent, with an output for each label that any knows."""
    if labels is None:
        return evaluation_copy(models[number])
    one_share = [1.0 if number == other else 0.0 for other in range(len(models))]
    return average(models, ChannelGroups(()), [{}] * len(models), one_share, labels, template)


def can_be_refitted(model: nn.Module, images: Loader) -> bool:
    """Tell whether a network can be decomposed, see `Program`, and has a layer that can be solved for."""
    try:
        return bool(DecomposedNetwork.create(evaluation_copy(model), images).units)
    except ArchitectureError:
        return False
