"""Hubs and trainers: children as Hugging Face, timm and Lightning load them, from parents as these wrote them.

    python -m experiments run hubs --threads 1

Pictures of scikit-learn's digits over coloured fields (32 x 32). Two small networks, each trained on nearly all
pictures of five digits and a fiftieth of those of the others, are written as the hub or trainer writes them. `depfuse
fuse A B --data photos/ --out CHILD`, with `--arch` where the files do not say it, sees 600 unlabelled pictures in a
folder. The child is loaded by the hub's own loader, and scored on 500 test pictures. `difference` is the largest
between its logits and those of `depfuse.load`. A seed draws the fields, the shares and the starts of the parents.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from depfuse import load
from depfuse.cli import main as depfuse
from depfuse.errors import DepfuseError
from depfuse.networks.forward import run_network
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import numbers
from experiments.lib.hubs.pictures import MEAN, STD, pictures
from experiments.lib.hubs.trades import TRADES, Logits, Trade
from experiments.lib.measurement import Measurement
from experiments.lib.tables import markdown

SEEDS = (0, 1, 2)
TRAINING, PHOTOGRAPHS, TESTS = 1297, 600, 500
RARE = 0.02  # of the pictures of the digits that a parent hardly knows
ROWS = ("parent 1", "parent 2", "ensemble", "average", "child")
VALUES = (*ROWS, "difference", "seconds")


def measure(cell: Cell) -> dict[str, Any]:
    """Train two parents, fuse them by the command line, and score the child that the hub's loader gives."""
    trade, seed = TRADES[cell["hub"]], int(cell["seed"])
    generator = torch.Generator().manual_seed(seed)
    images, labels = pictures(slice(TRAINING), generator)
    tests, truth = pictures(slice(TRAINING, TRAINING + TESTS), generator)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        files = [place / f"{name}{trade.suffix}" for name in ("parent_1", "parent_2", "child")]
        for number, file in enumerate(files[:2]):
            own = _own(labels, number, generator)
            trade.train(file, _normalised(images[own]), labels[own], 10 * seed + number)
        started = time.process_time()
        _fuse(trade, files, images[:PHOTOGRAPHS], place / "photos")
        seconds = time.process_time() - started
        return {**_scores(trade, files, _normalised(tests), truth), "seconds": seconds}


def _own(labels: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draw a parent's pictures: all of five digits but for a `RARE` share, and that of the others."""
    draws = torch.rand(len(labels), generator=torch.Generator().manual_seed(generator.initial_seed()))
    return torch.where((labels < 5) == (number == 0), draws >= RARE, draws < RARE)


def _normalised(images: Tensor) -> Tensor:
    return (images - MEAN) / STD


def _fuse(trade: Trade, files: list[Path], images: Tensor, folder: Path) -> None:
    """Run the command line on a folder of photographs."""
    folder.mkdir()
    for number, image in enumerate(images):
        to_pil_image(image).save(folder / f"{number:03d}.png")
    words = ["fuse", *map(str, files[:2]), "--data", str(folder), "--out", str(files[2])]
    words += ["--arch", trade.arch, "--mean", str(MEAN), "--std", str(STD)] if trade.arch else []
    if depfuse(words) != 0:
        raise DepfuseError(f"depfuse {' '.join(words)} ended with an error")


@torch.no_grad()
def _scores(trade: Trade, files: list[Path], tests: Tensor, truth: Tensor) -> dict[str, float]:
    """Score parents, their ensemble, the average of their tensors, and the child."""
    one, two, child = (trade.load(file)(tests) for file in files)
    ours = [load(file, arch=trade.arch or None) for file in files]
    states = [network.state_dict() for network in ours]
    average = {
        key: (tensor + states[1][key]) / 2 if tensor.is_floating_point() else tensor
        for key, tensor in states[0].items()
    }
    logits: Logits = lambda batch: run_network(ours[2], batch)  # noqa: E731
    difference = float((_tensor(logits(tests)) - child).abs().max())
    ours[2].load_state_dict(average)
    found = dict(zip(ROWS, (one, two, one + two, _tensor(logits(tests)), child), strict=True))
    scores = {row: float((outputs.argmax(1) == truth).float().mean()) for row, outputs in found.items()}
    return {**scores, "difference": difference}


def _tensor(outputs: Any) -> Tensor:
    """Return the logits of a network that may wrap them."""
    return outputs if isinstance(outputs, Tensor) else outputs.logits  # type: ignore[no-any-return]


def wanted(options: argparse.Namespace) -> list[Cell]:
    """The cells: every hub with every seed."""
    seeds = SEEDS if options.seeds is None else numbers("--seeds", options.seeds, 0)
    return [{"hub": hub, "seed": seed} for seed in seeds for hub in TRADES]


def add_options(options: argparse.ArgumentParser) -> None:
    """Which cells."""
    options.add_argument("--seeds", metavar="N,...", help="0,1,2")


def show(rows: pd.DataFrame, _: argparse.Namespace) -> str:
    """Accuracy of all rows, and how far the hub's child is from depfuse's."""
    lines = []
    for hub, own in rows[rows["refused"] == ""].groupby("hub", sort=False):
        scores = [_mean(100 * own[row]) for row in ROWS]
        lines.append([str(hub), *scores, f"{own['difference'].max():.1e}", f"{own['seconds'].mean():.0f}"])
    seeds = ", ".join(sorted(set(rows["seed"].astype(str))))
    return "\n\n".join([
        f"Per cent, the mean over seeds ({seeds}) with its standard error.",
        markdown(["hub or trainer", *ROWS, "largest difference", "CPU seconds of the command"], lines),
    ])  # fmt: skip


def _mean(values: pd.Series[float]) -> str:
    mean = f"{values.mean():.1f}"
    return mean if len(values) == 1 else f"{mean} ± {values.sem():.1f}"


MEASUREMENT = Measurement(
    "hubs", __doc__, wanted, lambda _: Cells(("hub", "seed"), VALUES, measure), show, add_options
)  # fmt: skip
