"""All that the golden cases call of depfuse, by the names that it has today: where one moves, a line changes here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import depfuse
from depfuse.cli import main
from depfuse.data import DataSet, calibration_loader, load_data
from depfuse.data.floats import to_floats
from depfuse.errors import DepfuseWarning
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, write_checkpoint
from depfuse.io.into_network import load_network
from depfuse.models import build_network
from depfuse.recipe.renorms import RENORMS
from depfuse.recipe.solvers import SOLVERS
from depfuse.teach.distil import Distillation
from depfuse.train import TrainRecipe, train

__all__ = [
    "DepfuseWarning", "choices", "digits", "fused", "load_network", "main", "read_state", "to_floats", "trained",
    "write_network",
]  # fmt: skip


def choices() -> dict[str, set[str]]:
    """Settings -> the names that there are to choose from, in registries that grow."""
    return {"solver": set(SOLVERS), "renorm": set(RENORMS)}


def digits() -> DataSet:
    return load_data("digits")


def read_state(path: Path) -> dict[str, Tensor]:
    return dict(read_checkpoint(path).state)


def write_network(path: Path, state: dict[str, Tensor], architecture: str) -> None:
    write_checkpoint(path, state, Card(architecture=architecture))


def fused(
    parents: Sequence[nn.Module],
    settings: dict[str, Any],
    labels: Sequence[Sequence[int]] | None = None,
    template: str | None = None,
    training_images: int = 0,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Fuse parents by a recipe; the child, and for each parent group name -> coupling.

    Calibration images are the digits'; `training_images` of them are there to train on.
    """
    data = digits()
    recipe = depfuse.Recipe(**settings)
    count, size = recipe.calibration.images, recipe.calibration.batch_size
    images = calibration_loader(data, count, batch_size=size, seed=recipe.seed)
    training = None
    if training_images:
        training = Distillation(replace(data, train=data.train.take(torch.arange(training_images))))
    known = depfuse.Parents(parents, labels, None if template is None else build_network(template))
    result = depfuse.fuse(known, recipe, images, training=training)
    return result.child, [dict(own) for own in result.couplings]


def trained(state: Path, die_after: int | None = None) -> nn.Module:
    """Train a small network for four epochs, going on from a state; or let the process die after one of them."""
    torch.manual_seed(0)
    network = build_network("digits_resnet(width=0.5)")
    train(
        network,
        digits(),
        TrainRecipe(epochs=4, batch_size=64, precision="float32"),
        resume_path=state,
        save_seconds=0,
        progress=lambda report: os._exit(9) if report.epoch == die_after else None,
    )
    return network
