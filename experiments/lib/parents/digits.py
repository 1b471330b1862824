"""Train the digits parents that lie in checkpoints/.

    python -m experiments run train_digits

Writes five pairs of parents with different knowledge, from different initial weights: `a` saw nine tenths of the
training images of each of the digits 0 to 4 and one tenth of each of 5 to 9, `b` the other way round. And one pair
that saw the same images, all of them, with other seeds and the trainer's own settings:

    digits-{a,b}.safetensors                    the first skewed pair
    digits-skewed-{1,2,3,4}-{a,b}.safetensors   the others
    digits-same-{a,b}.safetensors               the same images

A skewed parent is what this trains, S being its seed and P the first seed of its pair:

    depfuse train "digits_resnet(width=1.25)" --data digits --labels 0-4:0.9,5-9:0.1 --epochs 12 \
        --weight-decay 0.02 --seed S --split-seed P --out a.safetensors

The same machine gives the same files, byte for byte. What they reach stands in skewed_digits.py, and how epochs and
weight decay were chosen, on held-out training images.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from depfuse.data import DataSet, load_data, parse_labels, select_labels
from depfuse.io.atomic_files import check_writable
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.models import build_network
from depfuse.train import TrainRecipe, train
from experiments.lib.places import CHECKPOINTS

ARCHITECTURE = "digits_resnet(width=1.25)"
SKEWS = {"a": "0-4:0.9,5-9:0.1", "b": "0-4:0.1,5-9:0.9"}
FOLDS = 5
SKEWED: dict[str, Any] = {"epochs": 12, "weight_decay": 0.02}


def train_skewed(
    data: DataSet, which: str, first_seed: int, settings: Mapping[str, Any], architecture: str = ARCHITECTURE
) -> tuple[nn.Module, Card]:
    """Parent `which` ("a" or "b") of the pair that begins with `first_seed`."""
    part, _ = select_labels(data, parse_labels(SKEWS[which]), seed=first_seed)
    seeds = {"train": first_seed + "ab".index(which), "split": first_seed}
    return _trained(part, architecture, settings, seeds, labels=SKEWS[which])


def train_same(
    data: DataSet, seed: int, architecture: str = ARCHITECTURE, settings: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Card]:
    """A parent that saw all training images."""
    return _trained(data, architecture, settings or {}, {"train": seed})


def without_fold(data: DataSet, number: int) -> DataSet:
    """Put one fifth of each class of the training images in the place of the test images."""
    generator = np.random.default_rng(20240)
    folds = torch.empty(len(data.train), dtype=torch.int64)
    for label in range(len(data.classes)):
        of_class = torch.nonzero(data.train.labels == label)[:, 0]
        folds[of_class[generator.permutation(len(of_class))]] = torch.arange(len(of_class)) % FOLDS
    inside, outside = (torch.nonzero(kept)[:, 0] for kept in (folds != number, folds == number))
    return dataclasses.replace(data, train=data.train.take(inside), test=data.train.take(outside))


def _trained(
    part: DataSet, architecture: str, settings: Mapping[str, Any], seeds: dict[str, int], **split: str
) -> tuple[nn.Module, Card]:
    recipe = TrainRecipe.suited_to(part, seed=seeds["train"], **settings)
    torch.manual_seed(recipe.seed)
    model = build_network(architecture)
    metrics = train(model, part, recipe)
    del metrics["seconds"]  # the one figure that is not the same every time
    card = Card(
        architecture=architecture,
        data="digits",
        preprocessing=part.preprocessing,
        classes=tuple(range(10)),
        recipe={**recipe.model_dump(mode="json"), **split},
        seeds=seeds,
        metrics=metrics,
    )
    return model, card


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all pairs, and write them."""
    parser = argparse.ArgumentParser(description="Train the digits parents that lie in checkpoints/.")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    parser.add_argument("--pairs", type=int, default=5, help="skewed pairs")
    parser.add_argument("--first-seed", type=int, default=0, help="each pair takes the next two seeds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the order of additions depends on the number of threads
    data = load_data("digits")

    def write(name: str, model: nn.Module, card: Card) -> None:
        path: Path = options.out / f"{name}.safetensors"
        check_writable(path)
        write_checkpoint(path, model.state_dict(), card)
        print(f"{path}: {100 * card.metrics['accuracy']:.1f} % of the test images")

    for pair in range(options.pairs):
        stem = "digits" if pair == 0 else f"digits-skewed-{pair}"
        for which in SKEWS:
            write(f"{stem}-{which}", *train_skewed(data, which, options.first_seed + 2 * pair, SKEWED))
    for offset, which in enumerate("ab"):
        write(f"digits-same-{which}", *train_same(data, options.first_seed + offset))
    return 0


if __name__ == "__main__":
    sys.exit(main())
