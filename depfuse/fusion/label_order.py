"""Bring the outputs of parents that know the same labels into one order, by the rows of their last layers.

A network whose last layer gives scores (B, n) of the labels l_1, ..., l_n gives them in another order, once the rows of
that layer's weight and bias are in that order. Whether it does is tried on the network itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from depfuse.ensemble.label_sets import LabelSets
from depfuse.fusion.class_names import labels_of, name_outputs
from depfuse.fusion.parents import Parents
from depfuse.networks.copying import evaluation_copy, fit_example, random_like, unwrap
from depfuse.networks.faithful import difference
from depfuse.networks.forward import Example, run_network
from depfuse.networks.leaves import tensors_in
from depfuse.teach.heads import last_layer

_EXACT = 1e-9  # difference of outputs in float64, relative to the largest


def in_one_order(parents: Parents, example: Example | None) -> Parents:
    """Copy parents of the same labels so that each has its outputs in the ascending order of these.

    Parents are given back as they are where their labels are in that order, or are not the same; or where the outputs
    of one of them do not follow the rows of its last layer, so that they cannot be brought into it.

    Parameters
    ----------
    parents
        Networks of any precision, with the labels of their outputs.
    example
        An input (1, ...) to run them on.
    """
    if parents.labels is None or example is None:
        return parents
    sets = LabelSets.create(parents.labels)
    if len(sets.sets) != len(parents.models) or sets.same or any(set(own) != set(sets.joint) for own in sets.sets):
        return parents
    orders = [[own.index(label) for label in sets.joint] for own in sets.sets]
    models = [_reordered(model, order, example) for model, order in zip(parents.models, orders, strict=True)]
    found = [model for model in models if model is not None]
    if len(found) < len(models):
        return parents
    return replace(parents, models=found, labels=[sets.joint] * len(found))


def _reordered(model: nn.Module, order: Sequence[int], example: Example) -> nn.Module | None:
    """Copy a network so that its output j is the given one's output order[j]; None where its last layer cannot."""
    if list(order) == list(range(len(order))):
        return model
    exact = evaluation_copy(model, torch.float64)
    example = fit_example(example, exact)
    try:
        layer = last_layer(exact, example)
        name = next(name for name, module in exact.named_modules() if module is layer)
        inputs = [example, random_like(example)]
        before = [_outputs(exact, own) for own in inputs]
        _permute(layer, order)
        after = [_outputs(exact, own) for own in inputs]
    except Exception:  # where it does not run, tracing says why
        return None
    pairs = [pair for own in zip(before, after, strict=True) for pair in zip(*own, strict=True)]
    if not pairs or not all(_follows(one, other, order) for one, other in pairs):
        return None
    copied = evaluation_copy(model)
    _permute(copied.get_submodule(name), order)
    names = labels_of(unwrap(model))
    if names is not None and len(names) == len(order):
        name_outputs(copied, [str(names[place]) for place in order])
    return copied


def _permute(layer: nn.Module, order: Sequence[int]) -> None:
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            if tensor.shape[:1] == (len(order),):
                tensor.copy_(tensor[list(order)])


def _outputs(model: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(run_network(model, example))


def _follows(before: Tensor, after: Tensor, order: Sequence[int]) -> bool:
    """Tell whether an output has the labels in the new order; one without an axis of them stays."""
    axes = [axis for axis in range(1, before.dim()) if before.shape[axis] == len(order)]
    if not axes:
        return difference(after, before) < _EXACT
    index = torch.tensor(order, device=before.device)
    return any(difference(after, before.index_select(axis, index)) < _EXACT for axis in axes)
