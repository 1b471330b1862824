"""Combine the parents' outputs into those of their ensemble, by `outputs` and the labels that they know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depfuse.ensemble.label_sets import LabelSets
from depfuse.tasks.outputs import check_numbers, task_by_shape
from depfuse.tasks.task import Task
from depfuse.tasks.weighted import Weighted

TEMPERATURE = 4.0


def mean_logits(outputs: Sequence[Tensor], shares: Sequence[float], labels: LabelSets | None = None) -> Tensor:
    """Average the parents' logits (N, C) by their shares; put them side by side where they know different labels."""
    if labels is not None and not labels.same:
        return labels.join(outputs, shares, 1)
    return torch.stack([share * logits for share, logits in zip(shares, outputs, strict=True)]).sum(0)


def _joint_mean(
    outputs: Sequence[Tensor], shares: Sequence[float], labels: LabelSets | None, task: Task | None
) -> Tensor:
    """Average the outputs of parents with a joint head, each tensor of several as their task says."""
    return task.joint_mean(outputs, shares) if isinstance(task, Weighted) else mean_logits(outputs, shares, labels)


def ensemble_outputs(
    outputs: Sequence[Tensor],
    shares: Sequence[float],
    labels: LabelSets | None = None,
    *,
    joint: bool = False,
    task: Task | None = None,
) -> Tensor:
    """Combine the parents' outputs to those of the ensemble (N, ...), to compare others with (`Task.losses`).

    For class scores they are the share-weighted mean of the parents' class probabilities; where the parents know
    different labels, the probabilities of their logits side by side, zero for a label that none knows; where they have
    a joint head, those of the mean of their logits. For numbers they are the share-weighted mean.
    """
    if joint:
        logits = _joint_mean(outputs, shares, labels, task)
        return (task or task_by_shape(logits)).predictions(logits)
    if labels is None or labels.same:
        return (task or task_by_shape(outputs[0])).mean(outputs, shares)
    if task is not None and task.name not in ("classes", "dense"):
        return task.predictions(labels.join(outputs, shares, 1))
    has_label = torch.stack(labels.of_outputs(outputs)).amax(0) > -torch.inf
    return labels.join(outputs, shares, 1).masked_fill(~has_label, -torch.inf).softmax(1)


def ensemble_logits(
    outputs: Sequence[Tensor],
    shares: Sequence[float],
    labels: LabelSets | None = None,
    temperature: float = TEMPERATURE,
    *,
    joint: bool = False,
    task: Task | None = None,
) -> Tensor:
    r"""Compute logits t (N, C) with :math:`\mathrm{softmax}(t / \tau) = \sum_p w_p\, \mathrm{softmax}(z_p / \tau)`.

    The mean of the parents' probabilities, softened by the temperature :math:`\tau` (Hinton et al. 2015, section 2): a
    parent that is not confident counts little, while in the mean of the logits one that is confident and wrong outvotes
    the others. Where the parents know different labels, their logits side by side. Where the outputs are no
    class scores, their mean.

    Parameters
    ----------
    outputs
        Each parent's logits (N, C).
    shares
        One weight per parent, summing to one.
    labels
        The parents' label sets, where they differ.
    temperature
        Temperature by which probabilities are softened; at 1 they are the ensemble's own.
    joint
        Whether the parents have a joint head, whose output is the mean of their logits.
    task
        What the outputs mean; by their shape where None.

    Raises
    ------
    DataError
        A parent gives NaN, from which nothing can be learned.
    """
    for number, own in enumerate(outputs):
        check_numbers(own, number)
    if joint:
        return _joint_mean(outputs, shares, labels, task)
    if labels is not None and not labels.same:
        return mean_logits(outputs, shares, labels)
    return (task or task_by_shape(outputs[0])).ensemble_target(outputs, shares, temperature)
