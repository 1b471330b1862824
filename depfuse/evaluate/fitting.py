"""Whether labels fit the outputs that are scored by them, looked at before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.data.masks import MaskFiles
from depfuse.data.stream import Stream
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.label_kinds import labels_for
from depfuse.tasks.task import Task

FEW = 16  # masks that are looked at where these are files; each is once more as it is scored


def check_test_labels(network: nn.Module, images: Loader | Stream, task: Task) -> None:
    """Raise `DataError` where the labels of images do not fit a network's outputs; see `labels_for`.

    Parameters
    ----------
    network
        Run on two images; it gives one tensor.
    images
        Nothing is looked at where they have no labels.
    task
        What the outputs mean.
    """
    labels = images.split.labels
    if labels is None:
        return
    with torch.no_grad(), evaluating(network):
        outputs = run_network(network, next(iter(images.first(2)))[0])
    if isinstance(outputs, Tensor):
        labels_for(task, labels[:FEW].decoded() if isinstance(labels, MaskFiles) else labels, outputs.float())
