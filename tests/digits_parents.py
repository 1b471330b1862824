"""The shipped digits networks, and smaller ones for what takes many steps of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from depfuse.data import load_data
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.io.into_network import load_network
from depfuse.models import build_network
from depfuse.train import TrainRecipe, fit

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
SMALL = Path(__file__).resolve().parent / "parents"  # trained by `python tests/digits_parents.py`, the same everywhere
ARCHITECTURE = "digits_resnet(width=1.25)"
SMALL_ARCHITECTURE = "digits_resnet(width=0.5)"


def digits_files(*names: str) -> list[str]:
    """Where they lie: `digits_files("a", "same-b")`."""
    return [str(CHECKPOINTS / f"digits-{name}.safetensors") for name in names]


def digits_parents(*names: str) -> list[nn.Module]:
    """The same as networks, in evaluation mode."""
    return [load_network(path) for path in digits_files(*names)]


def small_parents() -> list[nn.Module]:
    """Two networks of 8 and 16 channels that know different things, in evaluation mode."""
    return [load_network(path) for path in small_files()]


def small_files() -> list[str]:
    """Where they lie."""
    return [str(SMALL / f"small-{name}.safetensors") for name in "ab"]


def train_small_parents() -> None:
    """Train both, each on half of the labels and few images of the others, and write them."""
    data = load_data("digits")
    for number, path in enumerate(small_files()):
        known = (data.train.required_labels < 5) == (number == 0)
        known[::10] = True
        train = data.train.take(known.nonzero()[:, 0])
        recipe = TrainRecipe(epochs=8, batch_size=60, learning_rate=0.1, warmup=1.0, seed=number)
        torch.manual_seed(number)
        model = build_network(SMALL_ARCHITECTURE)
        fit(model, dataclasses.replace(data, train=train), recipe)
        write_checkpoint(Path(path), model.state_dict(), Card(architecture=SMALL_ARCHITECTURE, data="digits"))


if __name__ == "__main__":
    train_small_parents()
