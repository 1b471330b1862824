"""Better teachers of parents with different knowledge: renewed statistics, and one head over all features."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.label_sets import LabelSets
from depfuse.merge import average
from depfuse.renorm import reset_batch_norm
from depfuse.running import evaluating, modules_in_order

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 5
ITERATIONS = 100


def renewed(models: Sequence[nn.Module], calibration: Loader) -> list[nn.Module]:
    """Copies of the parents with BatchNorm statistics of the calibration images.

    A parent that has seen some of the labels only has statistics of theirs: on images of all labels its outputs are
    far from those of the other parents in scale.
    """
    found = [copy.deepcopy(model) for model in models]
    for model in found:
        reset_batch_norm(model, calibration)
    return found


def with_joint_head(
    models: Sequence[nn.Module],
    shares: Sequence[float],
    labelled: Loader,
    labels: LabelSets | None = None,
    template: nn.Module | None = None,
) -> list[nn.Module]:
    """Copies of the parents with heads over all labels, whose share-weighted logits fit some labelled images.

    Multinomial logistic regression on the standardised features of all parents side by side, its L2 penalty chosen by
    cross-validation in five parts. Each copy takes its part of the weights, so that the ensemble of the copies is that
    classifier.

    Parameters
    ----------
    models
        The parents; left as they are.
    shares
        One weight per parent; one of weight zero has no say.
    labelled
        Images with labels, which are read here.
    labels, template
        Which labels the parents' outputs stand for and a network with an output for each, where they differ.

    Raises
    ------
    RecipeError
        There are fewer than five images of two labels, or a network does not end in a linear layer.
    """
    if labelled.count < FOLDS or len(torch.unique(labelled.labels)) < 2:
        raise RecipeError(f"{labelled.count} labelled images are too few for a head: give at least 10, better 500")
    copies = [_of_all_labels(models, number, labels, template) for number in range(len(models))]
    images = next(iter(labelled))[0][:1]
    heads = [head_of(model, images) for model in copies]
    features = [_features(model, head, labelled) for model, head in zip(copies, heads, strict=True)]
    classes = heads[0].out_features
    highest = int(labelled.labels.max())
    if highest >= classes:
        raise RecipeError(
            f"the data have the label {highest}, but the parents know {classes} labels: 0 to {classes - 1}"
        )
    widths = [found.shape[1] for found in features]
    weight, bias = _logistic_regression(torch.cat(features, 1), labelled.labels, classes)
    with torch.no_grad():
        for head, own, share in zip(heads, torch.split(weight, widths, 1), shares, strict=True):
            head.weight.copy_(own / share if share > 0 else torch.zeros_like(own))
            head.bias.copy_(bias)
    return copies


def _of_all_labels(
    models: Sequence[nn.Module], number: int, labels: LabelSets | None, template: nn.Module | None
) -> nn.Module:
    if labels is None or labels.same:
        return copy.deepcopy(models[number])
    own = [float(number == other) for other in range(len(models))]
    return average(models, ChannelGroups(()), [{}] * len(models), own, labels, template)


def head_of(model: nn.Module, images: Tensor) -> nn.Linear:
    """The linear layer that gives the logits: the last layer with weights that runs.

    Raises
    ------
    RecipeError
        It is none, or has no bias.
    """
    with torch.no_grad(), evaluating(model):
        ran = modules_in_order(model, lambda: model(images))
    layers = [name for name in ran if name and next(model.get_submodule(name).parameters(False), None) is not None]
    layer = model.get_submodule(layers[-1]) if layers else model
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise RecipeError(
            f"labelled images fit the head of a network that ends in a linear layer with a bias, not in"
            f" {type(layer).__name__}: leave out --labelled"
        )
    return layer


def _features(model: nn.Module, layer: nn.Module, loader: Loader) -> Tensor:
    """Inputs (N, width) of a layer."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float()))
    try:
        with torch.no_grad(), evaluating(model):
            for images, _ in loader:
                model(images)
    finally:
        handle.remove()
    return torch.cat(found)


def _logistic_regression(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (classes, width) and bias (classes,) of the regression with the best penalty."""
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    x, y = ((features - mean) / deviation).double(), labels.long()
    parts = torch.arange(len(x), device=x.device) % FOLDS
    losses = []
    for penalty in PENALTIES:
        held = 0.0
        for part in range(FOLDS):
            weight, bias = _fitted(x[parts != part], y[parts != part], classes, penalty)
            scores = x[parts == part] @ weight.T + bias
            held += float(nn.functional.cross_entropy(scores, y[parts == part], reduction="sum"))
        losses.append(held)
    weight, bias = _fitted(x, y, classes, PENALTIES[losses.index(min(losses))])
    weight = weight / deviation
    return weight.to(features), (bias - weight @ mean.double()).to(features)


def _fitted(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(x @ weight.T + bias, y) + 0.5 * penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
