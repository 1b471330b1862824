"""The shipped digits networks, and smaller ones for what takes many steps of training."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from depfuse.data import load_data
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.io.loading import load_network
from depfuse.models import build_network
from depfuse.train import TrainRecipe, fit

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
ARCHITECTURE = "digits_resnet(width=1.25)"
SMALL_ARCHITECTURE = "digits_resnet(width=0.5)"


def digits_files(*names: str) -> list[str]:
    """Where they lie: `digits_files("a", "same-b")`."""
    return [str(CHECKPOINTS / f"digits-{name}.safetensors") for name in names]


def digits_parents(*names: str) -> list[nn.Module]:
    """The same as networks, in evaluation mode."""
    return [load_network(path) for path in digits_files(*names)]


@cache
def _small_state(number: int) -> dict[str, Tensor]:
    """Train a network of 8 and 16 channels, in half a second, on half of the labels and few images of the others."""
    data = load_data("digits")
    known = (data.train.labels < 5) == (number == 0)
    known[::10] = True
    train = data.train.take(known.nonzero()[:, 0])
    recipe = TrainRecipe(epochs=8, batch_size=60, learning_rate=0.1, warmup=1.0, seed=number)
    with torch.random.fork_rng():
        torch.manual_seed(number)
        model = build_network(SMALL_ARCHITECTURE)
        fit(model, dataclasses.replace(data, train=train), recipe)
    return model.state_dict()


def small_parents() -> list[nn.Module]:
    """Two networks of 8 and 16 channels that know different things, in evaluation mode."""
    parents = [build_network(SMALL_ARCHITECTURE).eval() for _ in range(2)]
    for number, parent in enumerate(parents):
        parent.load_state_dict(_small_state(number))
    return parents


def small_files(folder: Path) -> list[str]:
    """Write the same to checkpoints."""
    paths = [folder / f"small-{name}.safetensors" for name in "ab"]
    for number, path in enumerate(paths):
        write_checkpoint(path, _small_state(number), Card(architecture=SMALL_ARCHITECTURE, data="digits"))
    return [str(path) for path in paths]
