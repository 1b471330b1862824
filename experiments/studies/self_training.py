"""Self-training: a child of parents that know different classes, without labels, above the ensemble that taught it.

    python -m experiments run self_training --threads 1

A day for all 50,000 images and 20 passes; one thread, or minutes of a GPU (`--device cuda`). Halves of CIFAR-10,
trained by other people and by depfuse. Settings are chosen on own halves, and those of other people report. A seed
draws calibration and unlabelled images, in the order of training. Accuracy is on test images, as they are and as the
mean of an image and its mirror image. Seconds are those of the processor, on a GPU those on the wall.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.data import DataSet, calibration_loader
from depfuse.data.loader import calibration_order
from depfuse.distributed.device import resolve_device
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.recipe.sections import Train
from depfuse.refit import refit_heads
from depfuse.teach.distil import Distillation
from depfuse.teach.self_training import Effect, predict
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import numbers
from experiments.lib.material import Material, shared_material, teachers
from experiments.lib.measurement import Measurement
from experiments.lib.tables import Estimate, markdown

SETS = {"own-halves": "own halves", "halves": "halves"}
FIRST = 3  # passes of distillation before self-training, in the row with both
NETWORKS = {
    "beside": "heads side by side (two networks)",
    "head": "one head without labels (two networks)",
    "mirrored head": "the same, found on images and mirror images",
    "refitted": "child, refitted",
    "distilled": "child, distilled as long",
    "self-trained": "child, self-trained",
    "both": f"child, {FIRST} passes of distillation, then self-trained",
    "parent": "better parent, head refitted, self-trained",
}
KEYS = ("set", "network", "seed", "images", "passes", "test_limit")
VALUES = ("accuracy", "mirrored", "nearer", "alike", "kept", "seconds")


@dataclass(frozen=True, eq=False)
class Setting:
    """Parents of a set with the unlabelled images of a seed, and what all rows share."""

    of: Material
    seed: int
    images: int

    @cached_property
    def data(self) -> DataSet:
        """The data with some of the training images."""
        data = self.of.inputs.data
        order = calibration_order(len(data.train), self.seed)[: self.images]
        return replace(data, train=replace(data.train.take(order), labels=None))

    def ensemble(self, mirrored: bool) -> Ensemble:
        """The parents with one head, found on as many images as a training of the child takes."""
        images = self.training.images(self.device, self.seed)
        found = teachers(self.of, images, Recipe.create({"train.self_training": 1}), mirrored=mirrored)
        return Ensemble(found.models, self.of.shares, found.labels, found.joint)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.of.inputs.device

    @property
    def training(self) -> Distillation:
        """The training of the child."""
        return Distillation(self.data)

    @cached_property
    def child(self) -> nn.Module:
        """The refitted child, untrained."""
        recipe = Recipe.create(seed=self.seed, refit="ridge")
        calibration = calibration_loader(self.data, recipe.calibration.images, device=self.device, seed=self.seed)
        return fuse(self.of.inputs.parents(self.of.template), recipe, calibration).child

    @cached_property
    def parent(self) -> nn.Module:
        """The better parent by the ensemble, with its head refitted to it."""
        teacher = self.ensemble(mirrored=False)
        calibration = calibration_loader(self.data, 2000, device=self.device, seed=self.seed)
        template = None if teacher.joint else self.of.template
        heads = refit_heads(teacher.networks, teacher.shares, calibration, labels=teacher.labels, template=template)
        return min(heads, key=EnsembleDistance(teacher, calibration))


@lru_cache(maxsize=1)
def _setting(name: str, seed: int, images: int, device: str) -> Setting:
    return Setting(shared_material(name, device), seed, images)


def measure(cell: Cell, device: str = "cpu") -> Mapping[str, Any]:
    """Train a network as its row says, and score it on test images."""
    name, seed, images, passes = (cell["set"], int(cell["seed"]), int(cell["images"]), int(cell["passes"]))
    setting = _setting(name, seed, images, device)
    start = copy.deepcopy(setting.parent if cell["network"] == "parent" else setting.child)  # not in the seconds
    clock = time.perf_counter if setting.device.type == "cuda" else time.process_time
    began = clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        network, effect = _made(setting, start, cell["network"], passes)
    seconds = clock() - began
    scores = _scores(setting, network, int(cell["test_limit"]))
    found: dict[str, Any] = {} if effect is None else _effect(effect)
    if setting.device.type == "cuda":
        found["machine"] = torch.cuda.get_device_name(setting.device)
    return {**scores, **found, "seconds": seconds}


def _made(setting: Setting, network: nn.Module, name: str, passes: int) -> tuple[nn.Module | Ensemble, Effect | None]:
    if name == "beside":
        return Ensemble(setting.of.inputs.models, setting.of.shares, setting.of.inputs.labels), None
    if name in ("head", "mirrored head"):
        return setting.ensemble(mirrored=name == "mirrored head"), None
    steps = {
        "distilled": Train(distil=passes),
        "self-trained": Train(self_training=passes),
        "parent": Train(self_training=passes),
        "both": Train(distil=FIRST, self_training=passes),
    }
    if name == "refitted":
        return network, None
    teacher = setting.ensemble(mirrored=name != "distilled")
    trained = setting.training.train(network, teacher, steps[name], seed=setting.seed, name="child", origin="")
    return network, trained.self_training


def _effect(effect: Effect) -> dict[str, float]:
    return {
        "nearer": effect.before - effect.after,
        "alike": (effect.alike_after - effect.alike_before) / effect.images,
        "kept": float(effect.kept),
    }


def _scores(setting: Setting, network: nn.Module | Ensemble, limit: int) -> dict[str, float]:
    """Accuracy on test images as they are, and with their mirror images."""
    test = setting.of.test(limit)
    labels: Tensor = test.required_labels

    def accuracy(*, mirrored: bool) -> float:
        return float((predict(network, test, mirrored=mirrored).argmax(1) == labels).float().mean())

    return {"accuracy": accuracy(mirrored=False), "mirrored": accuracy(mirrored=True)}


def scheme(options: argparse.Namespace) -> Cells:
    """How rows are measured and kept."""
    device = str(resolve_device(options.device))
    return Cells(KEYS, VALUES, partial(measure, device=device), named=("set", "network", "seed"))


def wanted(options: argparse.Namespace) -> Sequence[Cell]:
    """The cells that are asked for, seed by seed."""
    for option, given, known in (("--sets", options.sets, SETS), ("--networks", options.networks, NETWORKS)):
        if unknown := [name for name in given if name not in known]:
            raise RecipeError(f"{option} {unknown[0]} is not known: give some of {', '.join(known)}")
    images, passes = numbers("--images", options.images, 100), numbers("--passes", options.passes, 1)
    return [
        {
            "set": name,
            "network": network,
            "seed": seed,
            "images": count,
            "passes": number,
            "test_limit": options.test_limit,
        }
        for seed in numbers("--seeds", options.seeds, 0)
        for name in options.sets
        for count in images
        for number in passes
        for network in options.networks
    ]


def add_options(options: argparse.ArgumentParser) -> None:
    """Declare the options of this study."""
    options.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET")
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NETWORK")
    options.add_argument("--seeds", default="0,1,2", metavar="N,N")
    options.add_argument("--images", default="50000", metavar="N,N", help="unlabelled training images")
    options.add_argument("--passes", default="20", metavar="N,N", help="of training")
    options.add_argument("--device", default="cpu", help="cpu")
    options.add_argument("--test-limit", type=int, default=0, metavar="N", help="test images; all where 0")


def show(rows: pd.DataFrame, _: argparse.Namespace) -> str:
    """A table of each number of images and passes: accuracy in per cent, with the mirror image in brackets."""
    parts = []
    for (images, passes), own in rows.groupby(["images", "passes"], sort=False):
        parts.append(f"## {int(images):,} unlabelled images, {passes} passes\n\n{_table(own)}")
    return "\n\n".join(parts)


def _table(rows: pd.DataFrame) -> str:
    sets = [name for name in SETS if name in set(rows["set"])]
    lines = []
    for network, title in NETWORKS.items():
        own = rows[rows["network"] == network]
        if own.empty:
            continue
        cells = [_cell(own[own["set"] == name]) for name in sets]
        seconds = Estimate.of(own["seconds"].tolist())
        lines.append([title, *cells, "" if seconds is None else f"{seconds.mean:.0f}"])
    counts = [str(rows[rows["set"] == name]["seed"].nunique()) for name in sets]
    headers = [f"{SETS[name]} (seeds: {count})" for name, count in zip(sets, counts, strict=True)]
    return markdown(["network", *headers, "seconds"], lines)


def _cell(rows: pd.DataFrame) -> str:
    plain, mirrored = (Estimate.of(rows[column].tolist()) for column in ("accuracy", "mirrored"))
    if plain is None or mirrored is None:
        return ""
    undone = int((rows["kept"] == 0).sum())
    return f"{plain.text(100)} ({mirrored.text(100)})" + (f", {undone} not kept" if undone else "")


MEASUREMENT = Measurement("self_training", __doc__, wanted, scheme, show, add_options)
