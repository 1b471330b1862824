"""Five folds of a training set: each network is trained without its own fifth, by the loop of `depfuse train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from depfuse.data import DataSet, Preprocessing, Split
from depfuse.train import TrainRecipe, fit
from depfuse.train.descent import Descent
from experiments.lib.folds.networks import Norm, UNet
from experiments.lib.folds.scenes import Scenes

FOLDS = 5
DEEP = (1.0, 0.5)  # weights of the maps, the largest first


def loss_of(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute cross-entropy plus one less soft Dice (Milletari et al. 2016), its mean over the foreground.

    Without the second term small classes are given up for the background (Isensee et al. 2021 add it as well).

    Parameters
    ----------
    scores, labels
        (N, C, ...) and (N, ...).
    """
    probabilities = scores.softmax(1)
    wanted = functional.one_hot(labels, scores.shape[1]).movedim(-1, 1)
    places = (0, *range(2, scores.dim()))
    dice = (2 * (probabilities * wanted).sum(places) + 1) / ((probabilities + wanted).sum(places) + 1)
    return functional.cross_entropy(scores, labels) + 1 - dice[1:].mean()


class DeeplySupervised(Descent):
    """SGD on the loss of maps of every size; labels are shrunk by the nearest place."""

    def _taken(self, images: Any, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        assert labels is not None
        maps = self.forward(images)
        loss = torch.zeros(())
        for own, weight in zip(maps, DEEP, strict=True):
            wanted = functional.interpolate(labels[:, None].float(), own.shape[2:])[:, 0].long()
            loss = loss + weight * loss_of(own, wanted)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        right = (maps[0].detach().argmax(1) == labels).flatten(1).float().mean(1).sum()
        return loss.detach() * len(labels), right


class Ensemble(nn.Module):
    """The logarithm of the mean of the folds' probabilities."""

    def __init__(self, folds: Sequence[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([fold(images).softmax(1) for fold in self.folds]).mean(0).log()


@dataclass(frozen=True)
class Plan:
    """How many scenes there are, and how folds are trained."""

    scenes: int = 300
    tests: int = 300
    epochs: int = 30
    batch_size: int = 12
    learning_rate: float = 0.05
    width: int = 6


def data_of(scenes: Scenes, inputs: Tensor) -> DataSet:
    """Make inputs without labels data to train on."""
    return DataSet(scenes.title, (), Split(inputs), None, Preprocessing())


def fold(scenes: Scenes, norm: Norm, inputs: Tensor, labels: Tensor, number: int, seed: int, plan: Plan) -> nn.Module:
    """Train the network of one fold, on four fifths of the scenes."""
    own = torch.arange(len(inputs)) % FOLDS != number
    torch.manual_seed(FOLDS * seed + number)
    network = UNet(scenes.channels, scenes.classes, scenes.dimensions, norm, plan.width)
    recipe = TrainRecipe.create(
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        schedule="cosine",
        precision="float32",
        channels_last=False,
        seed=FOLDS * seed + number,
    )
    learner = DeeplySupervised(network, recipe, torch.device("cpu"), teacher=None, fast=False)
    fit(network, data_of(scenes, inputs[own]), recipe, teacher=labels[own], learner=learner)
    return network.eval()
