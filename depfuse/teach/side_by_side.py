r"""Parents of different labels as networks of all labels, whose outputs, averaged, are their heads side by side.

The smallest example is a layer that gives two labels, of which each parent knows one, at equal shares: the first
parent's becomes (2 w, 0), the second's (0, 2 w'), and the mean of both is (w, w'). From then on the parents have one
shape, and whatever averages them, their activations or their outputs joins their labels.

Where scores are of a softmax with background among the classes, each parent's background is subtracted from its scores
first, which changes no probability. A parent then says how much more likely a class is than nothing, and its background
is no answer to what only another one knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from depfuse.ensemble.label_sets import LabelAxis, LabelSets
from depfuse.errors import RecipeError
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating

TOLERANCE = 1e-4  # of scores side by side, relative to the largest


def with_heads_side_by_side(
    models: Sequence[nn.Module],
    shares: Sequence[float],
    labels: LabelSets,
    template: nn.Module,
    background: int | None = None,
) -> tuple[list[nn.Module], tuple[str, ...]]:
    """Copy parents in the shapes of a template, so that their share-weighted mean has their heads side by side.

    Parameters
    ----------
    models
        The parents; left as they are.
    shares
        One weight per parent, summing to one.
    labels
        Their label sets.
    template
        A network with an output for each label.
    background
        The label of background, where scores are of a softmax with it.

    Returns
    -------
    list, tuple
        The copies, and the keys of the weights that give their scores.
    """
    states = [model.state_dict() for model in models]
    target = template.state_dict()
    axes = head_axes(target, states, labels)
    rows = {
        key: [_without_background(state[key], axis, labels, number, background) for number, state in enumerate(states)]
        for key, axis in axes.items()
    }
    copies = []
    for number, state in enumerate(states):
        wide = evaluation_copy(template)
        with torch.no_grad():
            for key, tensor in wide.state_dict().items():
                if key not in axes:
                    tensor.copy_(state[key])
                elif target[key].dim() == 1:
                    tensor.copy_(labels.join_at(rows[key], shares, axes[key]))
                elif shares[number] > 0:
                    alone = [own * (parent == number) for parent, own in enumerate(rows[key])]
                    tensor.copy_(labels.join_at(alone, shares, axes[key]) / shares[number])
                else:
                    tensor.zero_()
        copies.append(wide)
    return copies, tuple(key for key in axes if target[key].dim() > 1)


def head_axes(
    target: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]], labels: LabelSets
) -> dict[str, LabelAxis]:
    """Find the tensors that differ in shape between parents, or from the template, with the axis of their labels."""
    wide = [key for key, tensor in target.items() if any(state[key].shape != tensor.shape for state in states)]
    return {key: labels.axis(key, target, states) for key in wide}


def check_side_by_side(
    copies: Sequence[nn.Module], shares: Sequence[float], wanted: Tensor, classes: Sequence[int], images: Example
) -> None:
    """Raise `RecipeError` unless the mean of some outputs is what the parents' heads give side by side.

    Parameters
    ----------
    copies
        From `with_heads_side_by_side`; they return rows (N, M).
    wanted
        (N, K): the parents' class scores side by side.
    classes
        The columns of the rows that these are, (K,).
    images
        For them.
    """
    with torch.no_grad(), evaluating(*copies):
        outputs = [share * run_network(model, images) for share, model in zip(shares, copies, strict=True)]
    found = torch.stack(outputs).sum(0)[:, list(classes)]
    if not bool(((found - wanted).abs() <= TOLERANCE * (1 + wanted.abs().amax())).all()):
        raise RecipeError(
            "the layers whose sizes differ between the parents do not give the class scores by themselves, so that"
            " these cannot be put side by side: let the network return what these layers give, before a sigmoid or"
            " softmax"
        )


def _without_background(
    tensor: Tensor, axis: LabelAxis, labels: LabelSets, parent: int, background: int | None
) -> Tensor:
    """Subtract from a head's rows those that give background."""
    if background is None:
        return tensor
    rows = axis.rows(tensor)
    return axis.tensor(rows - rows[labels.sets[parent].index(background)])
