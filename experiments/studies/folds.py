"""Five folds into one: the Dice of segmentation networks, their ensemble, and one network that is made of them.

    python -m experiments run folds --threads 1

A seed has scenes of its own, made of MNIST's zeros, ones and sevens: 120 with one pasted over the middle of each of
CIFAR-10's pictures, darkened (24 x 24), or 80 with a zero or a one extruded in a noisy volume (8 x 16 x 16). Five small
U-Nets with deep supervision are trained by depfuse's loop, by cross-entropy and Dice, each without another fifth of the
scenes, at a rate that was chosen on other scenes ([how](fold_rates)). Fusions see all of these scenes without labels,
which is what the trainer of five folds has, but for a sixteenth that judges the distillation of 20 epochs. Networks are
scored on other digits and pictures: 300 scenes, or 100 volumes. Dice is the mean over the classes, with the background;
the best fold is the best of five by the test, which favours it.

Some folds never tell two digits apart, or hardly (39 to 58 % Dice): of 60 eleven. That is most of the spread over
seeds. Where two of five do not (pictures, InstanceNorm, seed 0), their ensemble is in doubt between two digits, and the
child, though near to it, decides otherwise in many places: 71 %, the ensemble 90, the mean fold 69. It is not the
views: the folds agree with themselves on mirror images (3 % of what outputs differ by between images), and without
mirrored views, at rates of 0.01 and 0.003 and with ten times as many epochs the child stays within three points.

Few scenes are learned by heart. On volumes of seed 7, which report nothing, a child refitted to 80 of them was 0.0016
nats from the ensemble at a place of these, and 0.0081 at one of 150 others; with transposed convolutions refitted it is
at 0.0024 and 0.0072, and with volumes shifted at random, as pictures are, at 0.0034 and 0.0048. For the same reason
scenes that judge a distillation must not be calibrated on: when they were, eight of twelve children came no nearer to
the ensemble on them, and stayed as the refit had left them.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from depfuse import FusionResult, Recipe, fuse
from depfuse.errors import DepfuseWarning, LimitWarning, RecipeError
from depfuse.evaluate import evaluate
from depfuse.fusion.comparison import naive_child
from depfuse.tasks.classes import Dense
from depfuse.tasks.scores import DICE
from depfuse.teach.distil import Distillation, Trained
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import numbers
from experiments.lib.folds.networks import Norm, UNet
from experiments.lib.folds.scenes import SCENES, Scenes
from experiments.lib.folds.store import stored
from experiments.lib.folds.training import FOLDS, Ensemble, Plan, fold
from experiments.lib.measurement import Measurement
from experiments.lib.tables import Estimate, markdown

NORMS: tuple[Norm, ...] = ("batch", "instance")
SEEDS = (0, 1, 2)
MADE = ("ensemble", "average", "average, reset", "refitted", "distilled")
COLUMNS = ("mean fold", "best fold", *MADE)
GOALS = ("refitted over mean fold", "distilled over best fold", "ensemble over mean fold")
REPEATS = 3  # of which the fastest counts


@dataclass(frozen=True)
class Task:
    """What folds learn, how they are trained, and for how many epochs their child is distilled: scenes are few.

    The learning rate is that of a norm.
    """

    scenes: Scenes
    plan: Plan
    rates: Mapping[Norm, float] = field(hash=False)
    distil: int = 20

    def plan_with(self, norm: Norm) -> Plan:
        """Give the plan the learning rate of a norm."""
        return replace(self.plan, learning_rate=self.rates[norm])


TASKS: Mapping[str, Task] = {
    "pictures": Task(
        SCENES["pictures"], Plan(scenes=120, epochs=20, batch_size=8, width=8), {"batch": 0.2, "instance": 0.05}
    ),
    "volumes": Task(
        SCENES["volumes"],
        Plan(scenes=80, epochs=20, batch_size=8, width=6, tests=100),
        {"batch": 0.2, "instance": 0.05},
    ),
}


@lru_cache(maxsize=1)
def given(task: Task, seed: int) -> tuple[Tensor, Tensor]:
    """The scenes of a seed, with labels."""
    return task.scenes.draw(task.plan.scenes, torch.Generator().manual_seed(1 + seed), False)


@lru_cache(maxsize=1)
def tests(task: Task) -> tuple[Tensor, Tensor]:
    """The scenes that networks are scored on."""
    return task.scenes.draw(task.plan.tests, torch.Generator().manual_seed(0), True)


@lru_cache(maxsize=FOLDS)
def trained(task: Task, norm: Norm, seed: int, number: int) -> tuple[nn.Module, float]:
    """Train a fold of a seed, or load it where it was trained before; and the seconds that it took."""
    scenes, plan = task.scenes, task.plan_with(norm)
    return stored(
        f"{scenes.title} {norm} {seed} {number} {plan} {torch.get_num_threads()}",
        lambda: UNet(scenes.channels, scenes.classes, scenes.dimensions, norm, plan.width),
        lambda: fold(scenes, norm, *given(task, seed), number, seed, plan),
    )


def folds(task: Task, norm: Norm, seed: int) -> list[nn.Module]:
    """Train all folds of a seed."""
    return [trained(task, norm, seed, number)[0] for number in range(FOLDS)]


@dataclass(frozen=True)
class Recorded(Distillation):
    """Distil, and keep the child as it was before."""

    before: list[nn.Module] = field(default_factory=list, kw_only=True)

    def train(self, model: nn.Module, *others: Any, **settings: Any) -> Trained:
        """Train a network in place; see `Distillation.train`."""
        self.before.append(copy.deepcopy(model))
        return super().train(model, *others, **settings)


@lru_cache(maxsize=1)
def fused(task: Task, norm: Norm, seed: int) -> tuple[FusionResult, nn.Module]:
    """Fuse the folds of a seed on its scenes, without labels; the result, and the child before it was distilled."""
    images = given(task, seed)[0]
    recipe = Recipe.create(seed=seed, task="dense").changed({"train.distil": task.distil})
    training = Recorded(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        warnings.simplefilter("ignore", LimitWarning)
        return fuse(folds(task, norm, seed), recipe, calibration=images, training=training), training.before[0]


def made(network: str, task: Task, norm: Norm, seed: int) -> nn.Module:
    """Make a network of a row."""
    if network.startswith("fold "):
        return trained(task, norm, seed, int(network.removeprefix("fold ")))[0]
    if network == "ensemble":
        return Ensemble(folds(task, norm, seed))
    result, refitted = fused(task, norm, seed)
    if network.startswith("average"):
        return naive_child(result, (1 / FOLDS,) * FOLDS, "reset" if network.endswith("reset") else "none")
    return result.child if network == "distilled" else refitted


def measure(cell: Cell) -> dict[str, Any]:
    """Score and time the network of a cell."""
    return scored(TASKS[cell["task"]], cell["norm"], cell["network"], int(cell["seed"]))


def scored(task: Task, norm: Norm, name: str, seed: int) -> dict[str, float]:
    """Score a network, and time it on one scene."""
    started = time.perf_counter()
    network = made(name, task, norm, seed).eval()
    seconds = time.perf_counter() - started
    if name.startswith("fold "):
        seconds = trained(task, norm, seed, int(name.removeprefix("fold ")))[1]
    images, labels = tests(task)
    parts = zip(torch.split(images, 50), torch.split(labels, 50), strict=True)
    dice = evaluate(network, list(parts), Dense()).by(DICE)
    return {"dice": dice, "milliseconds": 1000 * _seconds(network, images[:50]), "seconds": seconds}


def _seconds(network: nn.Module, images: Tensor) -> float:
    """Time a network on each of some scenes, in seconds per scene."""
    times = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            started = time.process_time()
            network(images)
            times.append(time.process_time() - started)
    return min(times) / len(images)


def wanted(options: argparse.Namespace) -> list[Cell]:
    """The cells: every fold and what is made of them, seed by seed."""
    seeds = SEEDS if options.seeds is None else numbers("--seeds", options.seeds, 0)
    for chosen, known in ((options.tasks, TASKS), (options.norms, NORMS)):
        if unknown := [name for name in chosen if name not in known]:
            raise RecipeError(f"there is no {unknown[0]!r}: choose from {', '.join(known)}")
    networks = (*(f"fold {number}" for number in range(FOLDS)), *MADE)
    return [
        {"task": task, "norm": norm, "network": network, "seed": seed}
        for task in options.tasks or TASKS
        for norm in options.norms or NORMS
        for seed in seeds
        for network in networks
    ]


def scheme(options: argparse.Namespace) -> Cells:
    """How its rows are measured and kept."""
    return Cells(("task", "norm", "network", "seed"), ("dice", "milliseconds", "seconds"), measure)


def add_options(options: argparse.ArgumentParser) -> None:
    """Which cells."""
    options.add_argument("--seeds", metavar="N,...", help="of scenes and folds; 0,1,2")
    options.add_argument("--tasks", nargs="+", metavar="NAME", default=[], help=", ".join(TASKS))
    options.add_argument("--norms", nargs="+", metavar="NAME", default=[], help=", ".join(NORMS))


# --- tables -----------------------------------------------------------------------------------------------------------


def by_seed(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A value of every network for each seed that has all folds; of the folds their mean and that of the best."""
    table = rows.pivot_table(index="seed", columns="network", values=column)
    of_folds = [f"fold {number}" for number in range(FOLDS)]
    if not set(of_folds) <= set(table):
        return pd.DataFrame()
    table = table.dropna(subset=of_folds)
    return table.assign(**{"mean fold": table[of_folds].mean(axis=1), "best fold": table[of_folds].max(axis=1)})


def show(rows: pd.DataFrame, options: argparse.Namespace) -> str:
    """Dice, what children reach of the goals, and milliseconds."""
    found = []
    for (task, norm), own in rows.groupby(["task", "norm"], sort=False):
        title = f"{TASKS[str(task)].scenes.title}, {'BatchNorm' if norm == 'batch' else 'InstanceNorm'}"
        dice, cost = by_seed(own, "dice"), by_seed(own, "milliseconds")
        if not dice.empty:
            found.append((title, dice, cost))
    if not found:
        return "No seed has all of its folds yet."
    scores = [[title, str(len(dice)), *(_text(dice, name, 100) for name in COLUMNS)] for title, dice, _ in found]
    goals = [[title, *_goals(dice), _discarded(dice)] for title, dice, _ in found]
    costs = [[title, *(_text(cost, name, 1, 2) for name in ("ensemble", "refitted"))] for title, _, cost in found]
    return "\n\n".join([
        "Dice in per cent, the mean over seeds with its 95 % interval (of three seeds 4.3 standard errors)",
        markdown(["scenes", "seeds", *COLUMNS], scores),
        "What children have more than folds, in points of Dice, over the same seeds; and which share of the ensemble's"
        " gain over the mean fold a distilled child has; and of how many seeds distilling brought the child no nearer"
        " to the ensemble on scenes held out, so that it stayed the refitted one",
        markdown(["scenes", *GOALS, "share", "not distilled"], goals),
        "Milliseconds of one thread for a scene, in batches of 50",
        markdown(["scenes", "ensemble", "child"], costs),
    ])  # fmt: skip


def _text(table: pd.DataFrame, column: str, scale: float, digits: int = 1) -> str:
    found = Estimate.of(table[column].tolist()) if column in table else None
    return "" if found is None else found.text(scale, digits)


def _goals(dice: pd.DataFrame) -> list[str]:
    cells = []
    for first, second in (goal.split(" over ") for goal in GOALS):
        there = first in dice
        found = Estimate.of((dice[first] - dice[second]).tolist()) if there else None
        cells.append("" if found is None else found.text(100))
    if not {"distilled", "ensemble"} <= set(dice):
        return [*cells, ""]
    gain, reached = (float((dice[name] - dice["mean fold"]).mean()) for name in ("ensemble", "distilled"))
    return [*cells, f"{100 * reached / gain:.0f} %" if gain > 0 else ""]


def _discarded(dice: pd.DataFrame) -> str:
    """Count the seeds whose distilled network is the refitted one, to the last place."""
    if not {"refitted", "distilled"} <= set(dice):
        return ""
    both = dice[["refitted", "distilled"]].dropna()
    return f"{int((both['refitted'] == both['distilled']).sum())} of {len(both)}"


MEASUREMENT = Measurement("folds", __doc__, wanted, scheme, show, add_options)
