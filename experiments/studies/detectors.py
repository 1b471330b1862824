"""Detectors of different classes: one network that knows the union, beside both run one after the other.

    python -m experiments run detectors --threads 1

Pictures of 96 pixels: one to three digits of MNIST over a picture of CIFAR-10. Two detectors without anchors (100,000
parameters, residual connections, BatchNorm; class logits, boxes and centreness) are trained here from different starts,
one on pictures of the digits 0 to 4 and one on others of 5 to 9: neither has seen a digit of the other. Fusions see
unlabelled pictures of all digits, 300 for calibration; the distilled child is the refitted one after three epochs of
1,500, 6,000 or 24,000 such pictures. Scored on 300 test pictures of all digits by mean average precision (overlaps of
0.5 to 0.95, pycocotools). Both run side by side is twice the cost of any other row. A refit takes 110 CPU seconds,
distilling on 1,500 pictures 50 more, on 6,000 160 and on 24,000 600.

Four times as many unlabelled pictures, which are four times the steps, halve what the distilled child lacks. At an
overlap of a half children lack one to five per cent of both side by side, however long they are distilled: what more
pictures add is mostly how exact boxes are.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from depfuse import FusionResult, Parents, Recipe, fuse
from depfuse.data import DataSet, Preprocessing, Split
from depfuse.errors import DepfuseWarning
from depfuse.fusion.comparison import matched_average, naive_child
from depfuse.networks.counting import multiply_adds
from depfuse.tasks.selection import deselect, select
from depfuse.teach.distil import Distillation
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import numbers
from experiments.lib.detection.network import Detector
from experiments.lib.detection.parents import ALL, KNOWN, parents, tests, unlabelled
from experiments.lib.detection.scoring import Detections, detect, precision
from experiments.lib.measurement import Measurement
from experiments.lib.parents.trained import FOLDER
from experiments.lib.tables import markdown

SEEDS = (0, 1, 2)
CALIBRATION, EPOCHS, TESTS = 300, 3, 300
FEW = 1500  # pictures of a draw, of which the first are those for calibration
DISTILLED: Mapping[str, int] = {f"distilled on {count:,}": count for count in (FEW, 6000, 24_000)}
ROWS = ("parent 1", "parent 2", "side by side", "average", "matched", "refitted", *DISTILLED)
GOALS = {"refitted": 0.9, **dict.fromkeys(DISTILLED, 1.0)}  # of both side by side
VALUES = ("all", "0 to 4", "5 to 9", "all at 0.5")


@lru_cache(maxsize=1)
def fused(seed: int, folder: Path) -> FusionResult:
    """Fuse the parents of a seed."""
    both = Parents(parents(seed, folder), labels=KNOWN, template=Detector(len(ALL)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        return fuse(both, Recipe(seed=seed), unlabelled(seed, FEW)[:CALIBRATION])


def distilled(seed: int, folder: Path, count: int) -> nn.Module:
    """Train a copy of the child of a seed on, as `fuse` does with `train.distil`, which would refit it again."""
    result = fused(seed, folder)
    child = copy.deepcopy(result.child)
    select([child], result.meaning.learned)
    training = Distillation(DataSet("pictures", (), Split(unlabelled(seed, count)), None, Preprocessing()))
    settings = Recipe.create(**{"train.distil": EPOCHS}).train
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        training.train(child, result.ensemble, settings, seed=seed, name="child", origin="refitted")
    return deselect(child)


def made(network: str, seed: int, folder: Path) -> list[tuple[nn.Module, Sequence[int]]]:
    """Make the networks of a row, each with what its classes stand for."""
    if network in ("parent 1", "parent 2", "side by side"):
        both = list(zip(parents(seed, folder), KNOWN, strict=True))
        return both if network == "side by side" else [both[network == "parent 2"]]
    if network in DISTILLED:
        return [(distilled(seed, folder, DISTILLED[network]), ALL)]
    result = fused(seed, folder)
    if network == "refitted":
        return [(result.child, ALL)]
    average = naive_child if network == "average" else matched_average
    return [(deselect(average(result, (0.5, 0.5), "reset")), ALL)]


def measure(folder: Path, cell: Cell) -> dict[str, Any]:
    """Score what a row runs."""
    started = time.process_time()
    networks = made(cell["network"], int(cell["seed"]), folder)
    seconds = time.process_time() - started
    pictures, scenes = tests(TESTS)
    found = [detect(network, pictures, labels) for network, labels in networks]
    joined = [Detections.joined(own) for own in zip(*found, strict=True)]
    every, at_half = precision(joined, scenes, ALL)
    halves = [precision(joined, scenes, known)[0] for known in KNOWN]
    cost = sum(multiply_adds(network, pictures[:1]) for network, _ in networks)
    return {**dict(zip(VALUES, (every, *halves, at_half), strict=True)), "cost": cost / 1e6, "seconds": seconds}


def wanted(options: argparse.Namespace) -> list[Cell]:
    """The cells: every row of every seed."""
    seeds = SEEDS if options.seeds is None else numbers("--seeds", options.seeds, 0)
    return [{"network": network, "seed": seed} for seed in seeds for network in ROWS]


def scheme(options: argparse.Namespace) -> Cells:
    """How its rows are measured and kept."""
    return Cells(("network", "seed"), (*VALUES, "cost", "seconds"), partial(measure, options.parents))


def add_options(options: argparse.ArgumentParser) -> None:
    """Which cells."""
    options.add_argument("--seeds", metavar="N,...", help="of the parents; 0,1,2")
    options.add_argument("--parents", type=Path, default=FOLDER, metavar="FOLDER", help="where trained ones are kept")


def show(rows: pd.DataFrame, options: argparse.Namespace) -> str:
    """Precision of every row, and what the children keep of both side by side."""
    lines = []
    for network in ROWS:
        own = rows[rows["network"] == network]
        if not own.empty:
            cells = [_text(100 * own[value], 1) for value in VALUES]
            lines.append([
                network, str(own["seed"].nunique()), *cells, _text(_kept(rows, network), 2),
                f"{own['cost'].mean():.0f}",
            ])  # fmt: skip
    heads = ["network", "seeds", *(f"mAP, {value}" for value in VALUES), "of side by side", "million multiply-adds"]
    return "\n\n".join([
        f"Per cent, the mean over seeds ({', '.join(sorted(set(rows['seed'].astype(str))))}) with its standard error.",
        markdown(heads, lines),
        *_reached(rows),
    ])  # fmt: skip


def _kept(rows: pd.DataFrame, network: str) -> list[float]:
    """The share of the precision of both side by side, for each seed that has it."""
    scores = rows.pivot_table(index="seed", columns="network", values="all")
    if not {network, "side by side"} <= set(scores):
        return []
    return [float(share) for share in (scores[network] / scores["side by side"]).dropna()]


def _reached(rows: pd.DataFrame) -> list[str]:
    """Say of each goal whether it was reached."""
    said = []
    for network, goal in GOALS.items():
        if kept := _kept(rows, network):
            mean = sum(kept) / len(kept)
            verdict = "reached" if mean >= goal else "missed"
            said.append(f"Goal of the child {network}, {goal:.1f} of both side by side: {verdict} ({mean:.2f}).")
    return said


def _text(values: Sequence[float] | pd.Series[float], digits: int) -> str:
    """The mean of some seeds with its standard error."""
    own = pd.Series(values, dtype=float).dropna()
    if own.empty:
        return ""
    mean = f"{own.mean():.{digits}f}"
    return mean if len(own) == 1 else f"{mean} ± {own.sem():.{digits}f}"


MEASUREMENT = Measurement("detectors", __doc__, wanted, scheme, show, add_options)
