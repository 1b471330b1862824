"""Learning rates of the folds, chosen by their Dice on scenes that no other study sees.

    python -m experiments run fold_rates --threads 1

Two of five folds are trained at each rate, on scenes of a seed that the study of folds and the gallery do not use, and
scored on 300 more of them, which are drawn from the training digits and pictures as well. The rate with the highest
mean of a task and norm is that of `experiments run folds` and of the gallery's script. What is not in the table has not
been tried yet: the rate of volumes with InstanceNorm is that of pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from depfuse.evaluate import evaluate
from depfuse.tasks.classes import Dense
from depfuse.tasks.scores import DICE
from experiments.gallery import step7_folds
from experiments.lib.cells import Cell, Cells
from experiments.lib.folds.scenes import Scenes
from experiments.lib.folds.training import Plan, fold
from experiments.lib.measurement import Measurement
from experiments.lib.tables import markdown
from experiments.studies.folds import NORMS, TASKS

RATES = (0.05, 0.1, 0.2)
FOLDS_TRIED = (0, 1)
SEED = 100
JUDGED = 300  # scenes

PLANS: Mapping[str, tuple[Scenes, Plan]] = {
    **{name: (task.scenes, task.plan) for name, task in TASKS.items()},
    "gallery": (step7_folds.SCENES, step7_folds.PLAN),
}


def measure(cell: Cell) -> dict[str, Any]:
    """Train and score a fold."""
    scenes, plan = PLANS[cell["task"]]
    plan = replace(plan, learning_rate=float(cell["rate"]))
    generator = torch.Generator().manual_seed(SEED)
    inputs, labels = scenes.draw(plan.scenes, generator, False)
    unseen, judged = scenes.draw(JUDGED, generator, False)
    network = fold(scenes, cell["norm"], inputs, labels, int(cell["fold"]), SEED, plan)
    parts = zip(torch.split(unseen, 50), torch.split(judged, 50), strict=True)
    return {"dice": evaluate(network, list(parts), Dense()).by(DICE)}


def wanted(_: argparse.Namespace) -> list[Cell]:
    """The cells: each rate for folds of each task and norm."""
    return [
        {"task": task, "norm": norm, "rate": rate, "fold": number}
        for task in PLANS
        for norm in (NORMS if task in TASKS else NORMS[:1])
        for rate in RATES
        for number in FOLDS_TRIED
    ]


def scheme(_: argparse.Namespace) -> Cells:
    """How its rows are measured and kept."""
    return Cells(("task", "norm", "rate", "fold"), ("dice",), measure)


def show(rows: pd.DataFrame, _: argparse.Namespace) -> str:
    """Dice of the folds at each rate."""
    found: list[list[str]] = []
    for (task, norm), own in rows.groupby(["task", "norm"], sort=False):
        by_rate = {rate: own.loc[own["rate"].astype(float) == rate, "dice"] for rate in RATES}
        cells = [", ".join(f"{100 * dice:.1f}" for dice in values) for values in by_rate.values()]
        best = max(RATES, key=lambda rate: float(by_rate[rate].mean() or 0.0))
        found.append([PLANS[str(task)][0].title, str(norm), *cells, f"{best:g}"])
    title = "Dice of two folds in per cent, at each learning rate"
    header = ["scenes", "norm", *(f"{rate:g}" for rate in RATES), "chosen"]
    return f"{title}\n\n{markdown(header, found)}"


MEASUREMENT = Measurement("fold_rates", __doc__, wanted, scheme, show)
