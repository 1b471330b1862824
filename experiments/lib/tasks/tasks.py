"""The tasks: for each what is drawn, which network learns it by which loss, and how it is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.lib.tasks import networks, scenes, scores
from experiments.lib.tasks.scenes import Draw
from experiments.lib.tasks.scores import Score

SHARPNESS = 0.1  # temperature of the cosines of embeddings


@dataclass(frozen=True)
class TrainedTask:
    """A task that networks are trained on.

    Attributes
    ----------
    title
        As tables name it.
    meaning
        As recipes name the task; `auto` where outputs tell.
    draw
        Draws inputs and targets.
    network
        Builds a network with random weights.
    loss
        (outputs, targets) -> loss of the training.
    score, second
        What is compared, and another score beside it.
    trivial
        (test inputs, test targets, training targets) -> outputs that need no network; of the targets of the test only
        the shape is used.
    differ
        What parents of different knowledge know of it; empty where they only differ by their random starts.
    count, epochs, rate
        Number of training samples, epochs over them, and the highest learning rate of AdamW.
    """

    title: str
    meaning: str
    draw: Callable[[Draw], tuple[Any, Tensor]]
    network: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Score
    second: Score
    trivial: Callable[[Any, Tensor, Tensor], Tensor]
    differ: str
    count: int = 1500
    epochs: int = 12
    rate: float = 5e-3


def contrast(outputs: Tensor, target: Tensor) -> Tensor:
    """Supervised contrastive loss of embeddings (Khosla et al. 2020, equation 2)."""
    cosines = outputs @ outputs.T / SHARPNESS
    itself = torch.eye(len(outputs), dtype=torch.bool)
    logs = cosines.masked_fill(itself, -torch.inf).log_softmax(1)
    alike = (target[:, None] == target) & ~itself
    own = (logs.masked_fill(~alike, 0.0)).sum(1) / alike.sum(1).clamp_min(1)
    return -own[alike.any(1)].mean()


def in_units(*units: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared error in units of each number."""

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return ((outputs - target) / torch.tensor(units)).square().mean()

    return loss


TASKS: dict[str, TrainedTask] = {
    "binary": TrainedTask(
        "one logit: is a digit odd", "binary", scenes.parity, partial(networks.Pooled, 1),
        F.binary_cross_entropy_with_logits, scores.LABEL_ACCURACY, scores.AUROC, scores.mean_logits, "0-4 / 5-9",
    ),
    "regression-1": TrainedTask(
        "one number: by how much a digit is turned", "regression", scenes.angle, partial(networks.Flat, 1, 12),
        in_units(30.0), scores.R2, scores.CORRELATION, scores.mean_target, "turned left / right",
    ),
    "regression-3": TrainedTask(
        "three numbers: place and size", "regression", scenes.place, partial(networks.Flat, 3, 16),
        in_units(4.0, 0.5, 10.0), scores.R2, scores.CORRELATION, scores.mean_target, "left / right half",
    ),
    "multilabel": TrainedTask(
        "six labels: which digits are there", "multilabel", scenes.present, partial(networks.Pooled, 6),
        F.binary_cross_entropy_with_logits, scores.PRECISION, scores.AUROC, scores.mean_logits, "0-2 / 3-5",
    ),
    "segmentation": TrainedTask(
        "maps: U-Net", "dense", scenes.segments, partial(networks.UNet, 5), F.cross_entropy, scores.IOU, scores.DICE,
        scores.most_frequent, "0, 1 / 4, 7", epochs=24, rate=1e-2,
    ),
    "autoencoder": TrainedTask(
        "images: autoencoder", "regression", scenes.same_crops, networks.Autoencoder, F.mse_loss, scores.MSE,
        scores.PSNR, scores.mean_target, "two photographs",
    ),
    "upscaler": TrainedTask(
        "images: twice as large", "regression", scenes.halved_crops, networks.Upscaler, F.mse_loss, scores.MSE,
        scores.PSNR, scores.interpolated, "two photographs",
    ),
    "embeddings": TrainedTask(
        "embeddings: retrieval of digits", "features", scenes.digit, networks.Embedding, contrast, scores.AT_10,
        scores.MAP, scores.random_directions, "0-4 / 5-9",
    ),
    "waves": TrainedTask(
        "1-D network: six waves", "classes", scenes.waves, partial(networks.Pooled, 6, 1), F.cross_entropy,
        scores.ACCURACY, scores.TOP2, scores.most_frequent, "0-2 / 3-5",
    ),
    "volumes": TrainedTask(
        "3-D network: six bodies", "classes", scenes.volumes, partial(networks.Pooled, 6, 3, 8), F.cross_entropy,
        scores.ACCURACY, scores.TOP2, scores.most_frequent, "0-2 / 3-5",
    ),
    "two inputs": TrainedTask(
        "two inputs: image and row", "classes", scenes.digit_with_row, partial(networks.TwoInputs, 10, 8),
        F.cross_entropy, scores.ACCURACY, scores.TOP2, scores.most_frequent, "0-4 / 5-9",
    ),
    "transformer": TrainedTask(
        "transformer with LayerNorm", "classes", scenes.digit, partial(networks.Transformer, 10), F.cross_entropy,
        scores.ACCURACY, scores.TOP2, scores.most_frequent, "0-4 / 5-9", epochs=30, rate=3e-3,
    ),
}  # fmt: skip
