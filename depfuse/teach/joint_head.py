"""Better teachers of parents with different knowledge: renewed statistics, and one head over all features."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.merge import average
from depfuse.networks.calling import Example, run_network
from depfuse.networks.running import bfloat16_pays, evaluating, modules_in_order
from depfuse.renorm import reset_batch_norm
from depfuse.tasks.outputs import gives_classes
from depfuse.teach.information_maximisation import maximise

FEWEST = 10
COMPARED = 500
AGREEING = 0.75


def renewed(models: Sequence[nn.Module], calibration: Loader) -> list[nn.Module]:
    """Copies of the parents with BatchNorm statistics of the calibration images.

    A parent that has seen some of the labels only has statistics of theirs: on images of all labels its outputs are
    far from those of the other parents in scale.
    """
    found = [copy.deepcopy(model) for model in models]
    for model in found:
        reset_batch_norm(model, calibration)
    return found


def know_different(models: Sequence[nn.Module], images: Loader) -> bool:
    """Whether parents with the same labels have learned to tell different ones apart.

    Two of them then name the same class far more seldom than each is sure of its own: for less than `AGREEING` of the
    mean of their highest class probabilities, over all pairs and some unlabelled images. Where outputs are no class
    scores, there are none to tell apart.
    """
    first = images.example()
    with torch.inference_mode(), evaluating(models[0]):
        if not gives_classes(run_network(models[0], first)):
            return False
    found: list[list[Tensor]] = [[] for _ in models]
    with torch.inference_mode(), evaluating(*models):
        for batch, _ in images.first(COMPARED):
            for outputs, model in zip(found, models, strict=True):
                outputs.append(run_network(model, batch).float().softmax(1))
    sure, named = zip(*(torch.cat(outputs).max(1) for outputs in found), strict=True)
    agreement = [float((one == other).float().mean()) for one, other in itertools.combinations(named, 2)]
    return sum(agreement) / len(agreement) < AGREEING * float(torch.stack(sure).mean())


def can_have_joint_head(models: Sequence[nn.Module], images: Loader, labels: LabelSets | None = None) -> bool:
    """Whether all networks end in a linear layer, and there are enough images for so many classes to find a head."""
    first = images.example()
    heads = [layer for layer in (_last(model, first) for model in models) if _is_head(layer)]
    if len(heads) < len(models):
        return False
    classes = heads[0].out_features if labels is None else len(labels.joint)
    return classes > 1 and images.count >= FEWEST * classes


def with_joint_head(
    models: Sequence[nn.Module],
    shares: Sequence[float],
    calibration: Loader,
    labelled: int = 0,
    labels: LabelSets | None = None,
    template: nn.Module | None = None,
) -> list[nn.Module]:
    """Copies of the parents with heads over all labels, whose share-weighted logits are those of one classifier.

    Heads side by side are poorly calibrated against each other: each parent is as sure of images that it does not know.
    One linear classifier of the features of all parents, which begins as these heads, learns to tell better, by
    regularised information maximisation (`maximise`) and, where they are read, labels. Each copy takes its part of the
    weights.

    Parameters
    ----------
    models
        The parents; left as they are.
    shares
        One weight per parent; one of weight zero has no say.
    calibration
        Images.
    labelled
        The labels of so many of these, the first ones, are read.
    labels, template
        Which labels the parents' outputs stand for and a network with an output for each, where they differ.

    Raises
    ------
    RecipeError
        A network does not end in a linear layer with several outputs, or a label that was read is not one of the
        parents'.
    """
    copies = [_of_all_labels(models, number, labels, template) for number in range(len(models))]
    images = next(iter(calibration))[0][:1]
    heads = [head_of(model, images) for model in copies]
    classes = heads[0].out_features
    if classes < 2:
        raise RecipeError(
            "one head for all parents tells classes apart, and these networks have one output: leave out "
            "teach.labelled and teach.head"
        )
    known = calibration.required_labels[:labelled].long().to(images.device) if labelled else None
    if known is not None and int(known.max()) >= classes:
        raise RecipeError(
            f"the data have the label {int(known.max())}, but the parents know {classes} labels: 0 to {classes - 1}"
        )
    says = [number for number, share in enumerate(shares) if share > 0]
    features = [_features(copies[number], heads[number], calibration) for number in says]
    with torch.no_grad():
        counts = [_counts(number, shares, labels, classes).to(heads[number].bias) for number in says]
        own = [count[:, None] * heads[number].weight for count, number in zip(counts, says, strict=True)]
        start = torch.stack([count * heads[number].bias for count, number in zip(counts, says, strict=True)]).sum(0)
        weight, bias = maximise(torch.cat(features, 1), torch.cat(own, 1), start, known)
        for head in heads:
            head.weight.zero_()
            head.bias.copy_(bias)
        widths = [found.shape[1] for found in features]
        for number, part in zip(says, torch.split(weight, widths, 1), strict=True):
            heads[number].weight.copy_(part / shares[number])
    return copies


def shared_anew(
    models: Sequence[nn.Module], before: Sequence[float], now: Sequence[float], images: Example
) -> list[nn.Module]:
    """Copies of parents with one head whose logits, weighted by other shares, are again those of that head.

    One of weight zero has no say, now or before.

    Parameters
    ----------
    models
        What `with_joint_head` gave, or these with other channels.
    before, now
        The shares that they had, and those that they get.
    images
        One input, to find their heads with.
    """
    copies = [copy.deepcopy(model) for model in models]
    with torch.no_grad():
        for model, old, new in zip(copies, before, now, strict=True):
            head_of(model, images).weight.mul_(old / new if new > 0 else 0.0)
    return copies


def _counts(number: int, shares: Sequence[float], labels: LabelSets | None, classes: int) -> Tensor:
    """What a parent counts in each output (classes,), beside the others that know its label."""
    if labels is None:
        return torch.full((classes,), shares[number], dtype=torch.float32)
    alone = [
        torch.full((len(known),), float(parent == number), dtype=torch.float32)
        for parent, known in enumerate(labels.sets)
    ]
    return labels.join(alone, shares, 0)


def _of_all_labels(
    models: Sequence[nn.Module], number: int, labels: LabelSets | None, template: nn.Module | None
) -> nn.Module:
    if labels is None or labels.same:
        return copy.deepcopy(models[number])
    own = [float(number == other) for other in range(len(models))]
    return average(models, ChannelGroups(()), [{}] * len(models), own, labels, template)


def head_of(model: nn.Module, images: Example) -> nn.Linear:
    """The linear layer that gives the logits: the last layer with weights that runs.

    Raises
    ------
    RecipeError
        It is none, or has no bias.
    """
    layer = _last(model, images)
    if not _is_head(layer):
        lacking = " without one" if isinstance(layer, nn.Linear) else ""
        raise RecipeError(
            f"one head for all parents needs networks that end in a linear layer with a bias, not in"
            f" {type(layer).__name__}{lacking}: leave out teach.labelled and teach.head"
        )
    return layer


def _is_head(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(layer, nn.Linear) and layer.bias is not None


def _last(model: nn.Module, images: Example) -> nn.Module:
    with torch.no_grad(), evaluating(model):
        ran = modules_in_order(model, lambda: run_network(model, images))
    layers = [name for name in ran if name and next(model.get_submodule(name).parameters(False), None) is not None]
    return model.get_submodule(layers[-1]) if layers else model


def _features(model: nn.Module, layer: nn.Module, loader: Loader) -> Tensor:
    """Inputs (N, width) of a layer; from a forward pass in bfloat16 where that is faster."""
    found: list[Tensor] = []
    quick = torch.autocast(loader.device.type, torch.bfloat16, enabled=bfloat16_pays(loader.device))
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float()))
    try:
        with torch.no_grad(), evaluating(model), quick:
            for images, _ in loader:
                run_network(model, images)
    finally:
        handle.remove()
    return torch.cat(found)
