"""Upscalers: what a child keeps of its parents' decibels, on two kinds of degraded pictures.

    python -m experiments run upscalers --threads 1

Compact networks of spandrel that double the size (convolutions, PReLU, no BatchNorm), trained here on training images
of CIFAR-10 from two starts. Pictures are blurred and halved, or halved, given noise and compressed as JPEG. Two parents
know one kind, or one kind each. Fusions see 300 unlabelled inputs, half of them of each parent's kind, and training
towards the ensemble sees 1,200; networks are scored on 500 test images, degraded in both ways: PSNR in decibels and
SSIM, means of three seeds with half the width of a 95 % interval (4.3 standard errors). `--path` adds other shares.

Matching alone does little for networks without normalisation, and makes them no better than plain enlargement where the
parents know one kind; the refit does it. The mean of the pictures of parents of two kinds, and so the child, is between
them on each kind, and above both on the mean of the two kinds. Distilling adds nothing that three seeds would show.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from depfuse import FusionResult, Recipe, fuse
from depfuse.data import DataSet, Preprocessing, Split, load_data
from depfuse.errors import DepfuseWarning, LimitWarning
from depfuse.evaluate import evaluate
from depfuse.fusion.comparison import matched_average, naive_child
from depfuse.models import build_network
from depfuse.tasks.regression import Regression
from depfuse.tasks.scores import SSIM
from depfuse.teach.distil import Distillation
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import numbers
from experiments.lib.data_files import files_of
from experiments.lib.measurement import Measurement
from experiments.lib.tables import Estimate, markdown

KINDS = ("blur", "jpeg")
PARENTS: Mapping[str, tuple[str, str]] = {"one kind": ("blur", "blur"), "two kinds": ("blur", "jpeg")}
SHARES = (0.25, 0.5, 0.75)  # of the second parent
MIDDLE = ("aligned", "aligned by weights", "repair", "distilled")  # children that are made at equal shares alone
ROWS = ("enlarged", "parent 1", "parent 2", "ensemble", "average", *MIDDLE[:3], "refitted", MIDDLE[3])
PATH = ("average", "aligned", "refitted")  # networks that are made at other shares, too
SEEDS = (0, 1, 2)
IMAGES, CALIBRATION, TAUGHT, TESTS = 5000, 300, 1200, 500
BATCH, RATE = 32, 2e-3
NOISE, QUALITY = 8 / 255, 40  # standard deviation in units of white; of JPEG
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "refitted": {},
    "aligned by weights": {"criterion": "weights", "refit": "none", "renorm": "none"},
    "repair": {"refit": "none", "renorm": "repair"},
    "distilled": {"preset": "distil"},
}


class Enlarged(nn.Module):
    """Plain enlargement, by cubes."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1)


class Ensemble(nn.Module):
    """The mean of the parents' pictures."""

    def __init__(self, parents: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parents = nn.ModuleList(parents)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([parent(images) for parent in self.parents]).mean(0)


def degraded(kind: str, pictures: Tensor, seed: int) -> Tensor:
    """Degrade pictures (N, 3, H, W) in [0, 1] to half of their size."""
    if kind == "blur":
        weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        kernel = torch.outer(weights, weights).expand(3, 1, 5, 5)
        blurred = functional.conv2d(functional.pad(pictures, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
        return functional.interpolate(blurred, scale_factor=0.5, mode="area")
    small = functional.interpolate(pictures, scale_factor=0.5, mode="area")
    noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(seed))
    pixels = (255 * (small + NOISE * noise)).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(np.stack([_compressed(own) for own in pixels])).permute(0, 3, 1, 2).float() / 255


def _compressed(pixels: np.ndarray) -> np.ndarray:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=QUALITY)
    with Image.open(held) as image:
        return np.array(image)


@lru_cache(maxsize=1)
def pictures() -> tuple[Tensor, Tensor]:
    """Training and test pictures in [0, 1]."""
    data = load_data(files_of(["cifar10"], {})["cifar10"])
    return data.train.images[:IMAGES].float() / 255, data.required_test.images[:TESTS].float() / 255


@lru_cache(maxsize=4)
def parent(kind: str, seed: int, steps: int) -> nn.Module:
    """Train a network on one kind of pictures."""
    wanted = pictures()[0]
    given = degraded(kind, wanted, seed=1)
    torch.manual_seed(seed)
    network = build_network("spandrel:Compact(num_feat=16, num_conv=4, upscale=2)").train()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(wanted), (BATCH,))
        loss = functional.l1_loss(network(given[chosen]), wanted[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


def both(knowledge: str, seed: int, steps: int) -> list[nn.Module]:
    """Train the parents of a seed, from different starts."""
    return [parent(kind, 2 * seed + number, steps) for number, kind in enumerate(PARENTS[knowledge])]


def inputs(knowledge: str, count: int) -> Tensor:
    """The last training pictures, the first half degraded as one parent knows, the other as the other does."""
    halves = zip(PARENTS[knowledge], pictures()[0][-count:].chunk(2), strict=True)
    return torch.cat([degraded(kind, half, seed=2) for kind, half in halves])


@lru_cache(maxsize=4)
def fused(network: str, knowledge: str, seed: int, steps: int) -> FusionResult:
    """Fuse the parents of a seed."""
    images = inputs(knowledge, CALIBRATION)
    recipe = Recipe.create(**RECIPES[network], seed=seed, task="regression")
    taught = DataSet("pictures", (), Split(inputs(knowledge, TAUGHT)), None, Preprocessing()) if recipe.trains else None
    training = None if taught is None else Distillation(taught)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        warnings.simplefilter("ignore", LimitWarning)
        return fuse(both(knowledge, seed, steps), recipe, calibration=images, training=training)


def made(network: str, share: float, knowledge: str, seed: int, steps: int) -> nn.Module:
    """Make a network of a row of the tables."""
    if network == "enlarged":
        return Enlarged()
    if network in ("parent 1", "parent 2", "ensemble"):
        parents = both(knowledge, seed, steps)
        return Ensemble(parents) if network == "ensemble" else parents[network == "parent 2"]
    result = fused(network if network in RECIPES else "refitted", knowledge, seed, steps)
    shares = (1 - share, share)
    if network == "average":
        return naive_child(result, shares, "none")
    if network == "aligned":
        return matched_average(result, shares, "none")
    return result.at(shares) if share != 0.5 else result.child


def measure(steps: int, cell: Cell) -> dict[str, Any]:
    """Score one network on both kinds of pictures."""
    started = time.perf_counter()
    network = made(cell["network"], float(cell["share"]), cell["parents"], int(cell["seed"]), steps)
    seconds = time.perf_counter() - started
    wanted = pictures()[1]
    scores = {kind: evaluate(network, [(degraded(kind, wanted, seed=3), wanted)], Regression()) for kind in KINDS}
    return {
        **{f"{kind} PSNR": own.value for kind, own in scores.items()},
        **{f"{kind} SSIM": own.by(SSIM) for kind, own in scores.items()},
        "seconds": seconds,
    }


def wanted(options: argparse.Namespace) -> list[Cell]:
    """The cells: networks at equal shares, and of parents of two kinds also the distilled one; those of the path."""
    seeds = SEEDS if options.seeds is None else numbers("--seeds", options.seeds, 0)
    middle = [(network, 0.5) for network in ROWS]
    alike = [cell for cell in middle if cell[0] != "distilled"]
    path = [(network, share) for network in PATH for share in SHARES if share != 0.5]
    parts = [(seed, own) for seed in seeds for own in (("one kind", alike), ("two kinds", middle))]
    if options.path:
        parts += [(seed, ("two kinds", path)) for seed in seeds]
    return [
        {"parents": knowledge, "seed": seed, "network": network, "share": share}
        for seed, (knowledge, networks) in parts
        for network, share in networks
    ]


def scheme(options: argparse.Namespace) -> Cells:
    """How its rows are measured and kept."""
    values = [f"{kind} {score}" for kind in KINDS for score in ("PSNR", "SSIM")]
    return Cells(("parents", "network", "share", "seed"), (*values, "seconds"), partial(measure, options.steps))


def add_options(options: argparse.ArgumentParser) -> None:
    """Which cells."""
    options.add_argument("--seeds", metavar="N,...", help="of the parents; 0,1,2")
    options.add_argument(
        "--path", action="store_true", help="also other shares of two kinds, whose refits take longest"
    )
    options.add_argument("--steps", type=int, default=500, metavar="N", help="of a parent's training")


def show(rows: pd.DataFrame, options: argparse.Namespace) -> str:
    """Scores at equal shares, and along the path."""
    parts = []
    for knowledge in PARENTS:
        own = rows[rows["parents"] == knowledge]
        if own.empty:
            continue
        middle = own[own["share"].astype(float) == 0.5]
        parts += [f"## Parents of {knowledge}", _middle(middle)]
        if {"parent 1", "parent 2"} <= set(middle["network"]):
            parts += ["Less the better parent, paired by seed:", _gains(middle)]
        if not (path := _of_whole_paths(own)).empty:
            seeds = ", ".join(sorted(set(path["seed"].astype(str))))
            parts += [f"Along the path, the mean PSNR of both kinds over seeds {seeds}:", _path(path)]
    return "\n\n".join(parts)


def _middle(rows: pd.DataFrame) -> str:
    """Every network, on each kind of pictures and on the mean of both."""
    heads = [f"{kind} {score}" for score in ("PSNR", "SSIM") for kind in KINDS]
    lines = []
    for network in ROWS:
        own = rows[rows["network"] == network]
        if not own.empty:
            cells = [_text(own[head], 2 if "PSNR" in head else 3) for head in heads]
            lines.append([network, *cells, _text(_both(own), 2)])
    return markdown(["network", *heads, "PSNR of both"], lines)


def _gains(rows: pd.DataFrame) -> str:
    """What children have above the better of their own parents."""
    scores = rows.assign(both=_both(rows)).set_index(["network", "seed"])
    lines = []
    for network in ("refitted", "distilled"):
        if network not in set(rows["network"]):
            continue
        cells = []
        for column in ("blur PSNR", "jpeg PSNR", "both"):
            better = scores[column].loc[["parent 1", "parent 2"]].groupby("seed").max()
            cells.append(_text(scores[column].loc[network] - better, 2))
        lines.append([network, *cells])
    return markdown(["network", "blur PSNR", "jpeg PSNR", "PSNR of both"], lines)


def _of_whole_paths(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of seeds that have every share of the path."""
    path = rows[rows["network"].isin(PATH)]
    counts = path.groupby("seed")["share"].count()
    return path[path["seed"].isin(counts[counts == len(PATH) * len(SHARES)].index)]


def _path(rows: pd.DataFrame) -> str:
    lines = []
    for network in PATH:
        own = rows[rows["network"] == network]
        cells = [_text(_both(own[own["share"].astype(float) == share]), 2) for share in SHARES]
        lines.append([network, *cells])
    return markdown(["share of parent 2", *map(str, SHARES)], lines)


def _both(rows: pd.DataFrame) -> pd.Series[float]:
    return (rows["blur PSNR"] + rows["jpeg PSNR"]) / 2


def _text(values: pd.Series[float], digits: int) -> str:
    found = Estimate.of(values.tolist())
    return "" if found is None else found.text(digits=digits)


MEASUREMENT = Measurement("upscalers", __doc__, wanted, scheme, show, add_options)
