r"""Fine-tune on numbers whatever their unit: the steps of the layer that gives them are in that unit.

Numbers :math:`z = s u` of spread s are learned by the loss :math:`(z - t)^2 / 2 s^2 = (u - t / s)^2 / 2`, which depends
on u alone. A step of SGD on the weights V that would give u changes :math:`W = s V` by :math:`s^2` times the gradient
with respect to W. Without this factor steps are :math:`1 / s^2` times too long: the smallest example is one weight,
targets of spread 0.01 and a rate of 0.02, whose first step overshoots 200-fold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from depfuse.networks.forward import Example
from depfuse.tasks.regression import Regression
from depfuse.tasks.task import Task
from depfuse.teach.heads import POINTWISE, last_layer
from depfuse.train.interfaces import Labels


@contextmanager
def in_their_unit(model: nn.Module, labels: Labels, images: Example) -> Iterator[Labels]:
    """Multiply the gradients of the last layer by the squared spreads of the numbers that are learned.

    Where that layer has not one output for each spread, those of less than one count as one: what is small then is
    learned slowly, and nothing diverges.

    Parameters
    ----------
    model
        The network.
    labels
        What it learns; labels of other tasks are left alone.
    images
        An input.
    """
    spread = labels.task.spread if isinstance(labels.task, Regression) else None
    if spread is None:
        yield labels
        return
    layer = last_layer(model, images)
    if not isinstance(layer, (nn.Linear, *POINTWISE)) or len(layer.weight) != len(spread):
        task: Task = Regression(spread.clamp_min(1.0))
        yield Labels(labels.values, task)
        return
    square = spread.square()

    def scaled(gradient: Tensor) -> Tensor:
        return gradient * square.to(gradient).reshape(-1, *[1] * (gradient.dim() - 1))

    hooks = [
        own.register_hook(scaled)  # type: ignore[no-untyped-call]
        for own in layer.parameters()
        if own.requires_grad
    ]
    try:
        yield labels
    finally:
        for hook in hooks:
            hook.remove()
