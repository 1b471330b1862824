"""Bring the labels of training samples into the form by which a network learns them."""

from __future__ import annotations

import torch
from torch import nn

from depfuse.data import DataSet
from depfuse.data.masks import MaskFiles
from depfuse.errors import DataError
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.label_kinds import UNKNOWN, are_classes, labels_for
from depfuse.tasks.regression import Regression
from depfuse.tasks.task import Task
from depfuse.train.interfaces import Labels


def labels_to_learn(data: DataSet, model: nn.Module, task: Task) -> Labels:
    """Read the labels of all training samples for a network whose outputs mean `task`.

    Raises
    ------
    DataError
        There are none, not one for each sample, or they do not fit the outputs.
    """
    labels = data.train.labels
    if labels is None:
        raise DataError("train.finetune learns labels, and the training data have none: give such, or leave it out")
    labels = labels.decoded() if isinstance(labels, MaskFiles) else labels
    if are_classes(labels) and (lacking := int((labels == UNKNOWN).sum())):
        raise DataError(
            f"train.finetune learns the labels of all training samples, and {lacking} of {len(labels)} have none:"
            " leave it out; train.self_training learns from some labels"
        )
    with torch.no_grad(), evaluating(model):
        outputs = run_network(model, data.example(2, next(model.parameters()).device)).float()
    values = labels_for(task, labels, outputs)
    task = Regression.of_targets(values) if isinstance(task, Regression) else task
    task.label_loss(outputs, values[: len(outputs)].to(outputs.device), 0.0)  # embeddings have none under classes
    return Labels(values, task)
