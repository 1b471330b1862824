"""Improve parents with different knowledge as teachers: renew their statistics, and fit one head over all features."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.merge import average
from depfuse.networks.forward import run_network
from depfuse.networks.processor import bfloat16_pays
from depfuse.networks.running import evaluating
from depfuse.renorm import reset_batch_norm
from depfuse.tasks.outputs import gives_classes
from depfuse.teach.heads import Head, bias_of, head_of, heads_side_by_side, is_head, last_layer, set_joint_head
from depfuse.teach.information_maximisation import agreement, maximise, two_sets
from depfuse.teach.recall import estimate_recall

FEWEST = 10
PLACES = 20_000  # of all images' maps, drawn at random, that one head is fitted to
COMPARED = 500
AGREEING = 0.75


@dataclass(frozen=True, eq=False)
class JointHead:
    """Networks with one head.

    Attributes
    ----------
    networks
        Copies of the parents whose share-weighted mean of logits is the head's.
    information
        Mutual information (nats) of image and predicted class on the images that it was found from.
    agreement
        Share of the images that heads found on different ones of them name alike; 1 where that was not looked at.
    """

    networks: list[nn.Module]
    information: float
    agreement: float = 1.0


@dataclass(frozen=True)
class Read:
    """How many labels of calibration images are read, the first ones, and what their mean loss counts for."""

    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class HeadFit:
    """How one head is fitted.

    Attributes
    ----------
    dense
        Whether outputs are maps: the head is a pointwise convolution, fitted to `PLACES` of them.
    mirrored
        Whether the features are means over each image and its mirror image: a better head where both mean the same.
    recalled
        Whether each parent counts at the start for each class as far as it finds it (`estimate_recall`), in place of
        its share. For parents with the same labels.
    compared_above
        Information (nats) of the head from which on heads found on different images are compared: of one that tells
        less, and is not taken, nothing more need be known.
    """

    dense: bool = False
    mirrored: bool = False
    recalled: bool = False
    compared_above: float = math.inf


AS_IT_IS = HeadFit()


def renewed(models: Sequence[nn.Module], calibration: Loader) -> list[nn.Module]:
    """Copy the parents with BatchNorm statistics of the calibration images.

    A parent trained on some of the labels only has statistics of theirs: on images of all labels the scale of its
    outputs differs much from that of the other parents.
    """
    copies = [copy.deepcopy(model) for model in models]
    for model in copies:
        reset_batch_norm(model, calibration)
    return copies


def knowledge_differs(models: Sequence[nn.Module], images: Loader, *, dense: bool = False) -> bool:
    """Tell whether parents with the same label sets have learned to discriminate different classes.

    Two of them then predict the same class far more seldom than their confidence suggests: on less than `AGREEING`
    times the mean of their highest class probabilities, over all pairs and some unlabelled images, and their places
    where outputs are maps (`dense`). False where outputs are no class scores.
    """
    first = images.example()
    with torch.inference_mode(), evaluating(models[0]):
        if not dense and not gives_classes(run_network(models[0], first)):
            return False
    best: list[list[tuple[Tensor, Tensor]]] = [[] for _ in models]
    with torch.inference_mode(), evaluating(*models):
        for batch, _ in images.first(COMPARED):
            for outputs, model in zip(best, models, strict=True):
                found = run_network(model, batch).float().softmax(1).max(1)
                outputs.append((found.values, found.indices))
    confidences, classes = zip(*(map(torch.cat, zip(*outputs, strict=True)) for outputs in best), strict=True)
    agreement = [float((one == other).float().mean()) for one, other in itertools.combinations(classes, 2)]
    return sum(agreement) / len(agreement) < AGREEING * float(torch.stack(confidences).mean())


def can_have_joint_head(
    models: Sequence[nn.Module], images: Loader, labels: LabelSets | None = None, *, dense: bool = False
) -> bool:
    """Tell whether all networks end in a layer for a head, and there are enough images to fit one of so many classes.

    A linear layer where outputs are rows, a pointwise convolution where they are maps (`dense`).
    """
    first = images.example()
    heads = [layer for layer in (last_layer(model, first) for model in models) if is_head(layer, dense=dense)]
    if len(heads) < len(models):
        return False
    classes = len(heads[0].weight) if labels is None else len(labels.joint)
    return classes > 1 and images.count >= FEWEST * classes


def with_joint_head(
    models: Sequence[nn.Module],
    shares: Sequence[float],
    calibration: Loader,
    read: Read | None = None,
    labels: LabelSets | None = None,
    template: nn.Module | None = None,
    fit: HeadFit = AS_IT_IS,
) -> JointHead:
    """Copy the parents with heads over all labels whose share-weighted logits are those of one classifier.

    Heads side by side are poorly calibrated against each other: each parent is as confident on images of classes that
    it does not know. One linear classifier of the features of all parents, initialised with these heads, is trained by
    regularised information maximisation (`maximise`) and, where they are read, labels. Each copy takes its part of the
    weights.

    Parameters
    ----------
    models
        The parents; left as they are.
    shares
        One weight per parent; one of weight zero does not count.
    calibration
        Images.
    read
        Which labels of these are read, if any.
    labels, template
        The parents' label sets and a network with an output for each label, where they differ.
    fit
        Of which features, and from which start.

    Raises
    ------
    RecipeError
        A network does not end in a linear layer with several outputs, or a label that was read is not one of the
        parents'.
    """
    copies = [_of_all_labels(models, number, labels, template) for number in range(len(models))]
    images = calibration.example()
    heads = [head_of(model, images, dense=fit.dense) for model in copies]
    classes = len(heads[0].weight)
    if classes < 2:
        raise RecipeError(
            "one head for all parents tells classes apart, and these networks have one output: leave out "
            "teach.labelled and teach.head"
        )
    known = calibration.required_labels[: read.count].long().to(calibration.device) if read is not None else None
    if known is not None and int(known.max()) >= classes:
        raise RecipeError(
            f"the data have the label {int(known.max())}, but the parents know {classes} labels: 0 to {classes - 1}"
        )
    counted = [number for number, share in enumerate(shares) if share > 0]
    collected = [
        collect_features(copies[number], heads[number], calibration, mirrored=fit.mirrored) for number in counted
    ]
    label_weight = 1.0 if read is None else read.weight
    with torch.no_grad():
        recall = None
        if fit.recalled:
            scores = [
                own @ heads[number].weight.flatten(1).T.to(own) + bias_of(heads[number]).to(own)
                for number, own in zip(counted, collected, strict=True)
            ]
            recall = estimate_recall(scores, [shares[number] for number in counted])
        weight, bias = heads_side_by_side(heads, shares, labels, recall)
        features = _side_by_side(collected)
        sets = two_sets(features, classes) if fit.compared_above < math.inf else None
        found = maximise(features, weight, bias, known, label_weight, overwrite=True)
        set_joint_head(heads, shares, found.weight, found.bias)
        information, alike = float(found.information), 1.0
        if sets is not None and information > fit.compared_above:
            alike = agreement(sets, (weight, bias), features, found)
    return JointHead(copies, information, alike)


def _of_all_labels(
    models: Sequence[nn.Module], number: int, labels: LabelSets | None, template: nn.Module | None
) -> nn.Module:
    if labels is None or labels.same:
        return copy.deepcopy(models[number])
    shares = [float(number == other) for other in range(len(models))]
    return average(models, ChannelGroups(()), [{}] * len(models), shares, labels, template)


def _side_by_side(features: list[Tensor]) -> Tensor:
    """Put features (N, widths) side by side in float64, each freed as soon as it is copied."""
    first = features[0]
    joined = torch.empty(len(first), sum(own.shape[1] for own in features), dtype=torch.float64, device=first.device)
    end = joined.shape[1]
    while features:
        own = features.pop()
        start = end - own.shape[1]
        joined[:, start:end] = own
        end = start
    return joined


def collect_features(model: nn.Module, layer: Head, loader: Loader, *, mirrored: bool = False) -> Tensor:
    """Collect the inputs (N, width) of a layer, by a forward pass in bfloat16 where that is faster.

    Of maps, some places, drawn at random: the same ones for every network that has maps of that size.
    """
    features: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    quick = torch.autocast(loader.device.type, torch.bfloat16, enabled=bfloat16_pays(loader.device))

    def collect(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].float()
        if rows.dim() > 2:
            rows = rows.movedim(1, -1).flatten(0, -2)
            wanted = max(1, PLACES * len(inputs[0]) // loader.count)
            rows = rows[torch.randperm(len(rows), generator=generator)[:wanted].to(rows.device)]
        features.append(rows)

    handle = layer.register_forward_pre_hook(collect)
    try:
        with torch.no_grad(), evaluating(model), quick:
            for images, _ in loader:
                run_network(model, images)
                if mirrored:
                    run_network(model, images.flip(-1))
                    other = features.pop()
                    features[-1] = (features[-1] + other) / 2
    finally:
        handle.remove()
    return torch.cat(features)
