"""The layers that give class scores: find them, put them side by side, and give them their parts of one classifier."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating, modules_in_order

POINTWISE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Head = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""A layer that gives scores: linear for rows, pointwise for maps."""


def head_of(model: nn.Module, images: Example, *, dense: bool = False) -> Head:
    """Find the layer that gives the logits: the last layer with weights that runs.

    Raises
    ------
    RecipeError
        That layer is not linear (of maps: no pointwise convolution), or has no bias.
    """
    layer = last_layer(model, images)
    if not is_head(layer, dense=dense):
        lacking = " without one" if isinstance(layer, (nn.Linear, *POINTWISE)) and layer.bias is None else ""
        wanted = "pointwise convolution" if dense else "linear layer"
        raise RecipeError(
            f"one head for all parents needs networks that end in a {wanted} with a bias, not in"
            f" {type(layer).__name__}{lacking}: leave out teach.labelled and teach.head"
        )
    return layer


def head_weight(model: nn.Module, images: Example, *, dense: bool = False) -> str:
    """Find the key of that layer's weight; raises `RecipeError` as `head_of` does."""
    head = head_of(model, images, dense=dense)
    return next(f"{name}.weight" if name else "weight" for name, layer in model.named_modules() if layer is head)


def is_head(layer: nn.Module, *, dense: bool) -> TypeGuard[Head]:
    """Tell whether a layer with a bias is linear, or of maps (`dense`) a pointwise convolution."""
    if not dense:
        return isinstance(layer, nn.Linear) and layer.bias is not None
    if not isinstance(layer, POINTWISE) or layer.bias is None or layer.groups != 1:
        return False
    return {*layer.kernel_size, *layer.stride} == {1} and not any(layer.padding)


def bias_of(head: Head) -> Tensor:
    """Return the bias of a head, which has one."""
    assert head.bias is not None
    return head.bias


def last_layer(model: nn.Module, images: Example) -> nn.Module:
    """Find the last layer with weights that runs; the network itself where there is none."""
    with torch.no_grad(), evaluating(model):
        ran = modules_in_order(model, lambda: run_network(model, images))
    layers = [name for name in ran if name and next(model.get_submodule(name).parameters(False), None) is not None]
    return model.get_submodule(layers[-1]) if layers else model


def heads_side_by_side(
    heads: Sequence[Head], shares: Sequence[float], labels: LabelSets | None = None, recall: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the classifier whose scores are those of heads side by side.

    Parameters
    ----------
    heads
        One per parent, each over all labels.
    shares
        One weight per parent; one of weight zero does not count.
    labels
        The parents' label sets, where they differ: a label's score is the mean over the parents that know it.
    recall
        What each of these parents counts for in each class (parents, classes), in place of its share. Its scores are
        taken from their mean over classes then, since what is added to all of them no longer cancels.

    Returns
    -------
    tuple of two tensors
        Weight (classes, widths of all that count, in order) and bias (classes,).
    """
    classes = len(heads[0].weight)
    counted = [number for number, share in enumerate(shares) if share > 0]
    weights = [heads[number].weight.flatten(1) for number in counted]
    biases = [bias_of(heads[number]) for number in counted]
    if recall is None:
        counts = [_counts(number, shares, labels, classes) for number in counted]
    else:
        counts = list(recall)
        weights, biases = [own - own.mean(0) for own in weights], [own - own.mean() for own in biases]
    counts = [count.to(own) for count, own in zip(counts, weights, strict=True)]
    weights = [count[:, None] * own for count, own in zip(counts, weights, strict=True)]
    biases = [count * own for count, own in zip(counts, biases, strict=True)]
    return torch.cat(weights, 1), torch.stack(biases).sum(0)


def set_joint_head(heads: Sequence[Head], shares: Sequence[float], weight: Tensor, bias: Tensor) -> None:
    """Give each head its part of a classifier, so that their share-weighted mean is that classifier.

    Parameters
    ----------
    heads
        One per parent, changed in place; one of share zero gets no weights.
    weight, bias
        Of the classifier, as `heads_side_by_side` gives them.
    """
    counted = [number for number, share in enumerate(shares) if share > 0]
    for head in heads:
        head.weight.zero_()
        bias_of(head).copy_(bias)
    widths = [heads[number].weight.shape[1] for number in counted]
    for number, part in zip(counted, torch.split(weight, widths, 1), strict=True):
        heads[number].weight.copy_((part / shares[number]).reshape(heads[number].weight.shape))


def reweight_heads(
    models: Sequence[nn.Module], weights: Sequence[str], before: Sequence[float], now: Sequence[float]
) -> list[nn.Module]:
    """Copy networks of one head so that their scores, weighted by other shares, are again those of that head.

    A parent of weight zero, now or before, does not count.

    Parameters
    ----------
    models
        From `with_joint_head` or `with_heads_side_by_side`, or these with other channels.
    weights
        Keys of the weights that give the scores.
    before, now
        The old shares and the new ones.
    """
    copies = [copy.deepcopy(model) for model in models]
    with torch.no_grad():
        for model, old, new in zip(copies, before, now, strict=True):
            state = model.state_dict()
            for key in weights:
                state[key].mul_(old / new if new > 0 else 0.0)
    return copies


def _counts(number: int, shares: Sequence[float], labels: LabelSets | None, classes: int) -> Tensor:
    """Compute a parent's share in each output (classes,), among the parents that know its label."""
    if labels is None:
        return torch.full((classes,), shares[number], dtype=torch.float32)
    alone = [
        torch.full((len(label_set),), float(parent == number), dtype=torch.float32)
        for parent, label_set in enumerate(labels.sets)
    ]
    return labels.join(alone, shares, 0)
