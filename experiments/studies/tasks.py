"""Every kind of output: what a child keeps of its parents' score, on networks trained for twelve tasks.

    python -m experiments run tasks --distil --threads 1

Two and a half hours; one thread. Two parents of a seed have one task and different random starts. Of one knowledge,
they see other samples of all kinds; of different knowledge, nine tenths of their samples are from their own half of the
labels, ranges or pictures. They are trained by the study and kept. Fusions see 1,500 unlabelled training inputs, half
of them each parent's; networks are scored on 1,000 test inputs of all kinds that nothing has seen.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from depfuse import FusionResult, Recipe, fuse
from depfuse.data import DataSet, Preprocessing, Split
from depfuse.data.inputs import take_samples
from depfuse.errors import DepfuseWarning, LimitWarning, RecipeError
from depfuse.recipe.tasks import TASKS as MEANINGS
from depfuse.tasks.choose import choose_task
from depfuse.teach.distil import Distillation
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import numbers
from experiments.lib.measurement import Measurement
from experiments.lib.parents.trained import FOLDER
from experiments.lib.tables import Estimate, markdown
from experiments.lib.tasks.scores import Score
from experiments.lib.tasks.tasks import TASKS, TrainedTask
from experiments.lib.tasks.trained import draw_for, outputs_of, parents, samples_of_the_test

KNOWLEDGE = ("same", "different")
COLUMNS = {
    "parent 1": "parent 1",
    "parent 2": "parent 2",
    "ensemble": "ensemble",
    "trivial": "trivial",
    "naive": "naive average",
    "merged": "merged only",
    "refitted": "refitted",
    "distilled": "distilled",
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "merged": {"preset": "fast"},
    "refitted": {},
    "distilled": {"preset": "distil"},
}
GOAL = 0.95  # of the better parent's score above the trivial one
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Given:
    """Parents of a cell with what their fusions see, and the test."""

    task: TrainedTask
    parents: Sequence[nn.Module]
    images: Any
    trained: Tensor
    test: Any
    target: Tensor


@lru_cache(maxsize=1)
def given(name: str, knowledge: str, seed: int, folder: Path, samples: int) -> Given:
    """Train or load the parents of a seed, and draw what their fusions see."""
    task, differ = replace(TASKS[name], **{"count": samples} if samples else {}), knowledge == "different"
    drawn = [task.draw(draw_for(task, seed, number, differ=differ)) for number in range(2)]
    halves = [take_samples(inputs, slice(0, task.count // 2)) for inputs, _ in drawn]
    images = tree_map(lambda *parts: torch.cat(parts), *halves)
    trained = torch.cat([target for _, target in drawn])
    return Given(task, parents(task, seed, folder, differ=differ), images, trained, *samples_of_the_test(task))


def measure(folder: Path, samples: int, cell: Cell) -> dict[str, Any]:
    """Score one network of one task, and say how its refit ended."""
    of = given(cell["task"], cell["parents"], int(cell["seed"]), folder, samples)
    started, note = time.perf_counter(), ""
    if cell["network"] in RECIPES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DepfuseWarning)
            warnings.simplefilter("ignore", LimitWarning)
            result = fused(of, cell["network"])
        note = "; ".join(str(step) for step in result.steps if step.stage == "refit" and not step.kept)
        outputs = outputs_of(result.child, of.test, len(of.target))
    else:
        outputs = COMPARED[cell["network"]](of)
    seconds = time.perf_counter() - started
    task = of.task
    return {
        "score": task.score.of(outputs, of.target),
        "second": task.second.of(outputs, of.target),
        "seconds": seconds,
        "note": note,
    }


def fused(of: Given, network: str) -> FusionResult:
    """Fuse the parents of a cell."""
    recipe = Recipe.create(**RECIPES[network], task=of.task.meaning)
    training = None
    if recipe.trains:
        training = Distillation(DataSet(of.task.title, (), Split(of.images), None, Preprocessing()))
    return fuse(of.parents, recipe, calibration=of.images, training=training)


def _parent(number: int, of: Given) -> Tensor:
    return outputs_of(of.parents[number], of.test, len(of.target))


def _ensemble(of: Given) -> Tensor:
    """The outputs whose meaning is the mean of the parents'."""
    outputs = [_parent(number, of) for number in range(len(of.parents))]
    task = choose_task(MEANINGS(of.task.meaning), outputs[0], lambda: outputs).task
    assert task is not None
    return task.ensemble_target(outputs, [1 / len(outputs)] * len(outputs), 1.0)


def _naive(of: Given) -> Tensor:
    """The parents' plain average."""
    states = [parent.state_dict() for parent in of.parents]
    child = copy.deepcopy(of.parents[0])
    child.load_state_dict({
        key: torch.stack([state[key] for state in states]).mean(0) if own.is_floating_point() else own
        for key, own in states[0].items()
    })  # fmt: skip
    return outputs_of(child, of.test, len(of.target))


def _trivial(of: Given) -> Tensor:
    return of.task.trivial(of.test, of.target, of.trained)


COMPARED: Mapping[str, Callable[[Given], Tensor]] = {
    "parent 1": partial(_parent, 0),
    "parent 2": partial(_parent, 1),
    "ensemble": _ensemble,
    "naive": _naive,
    "trivial": _trivial,
}


# --- cells ------------------------------------------------------------------------------------------------------------


def wanted(options: argparse.Namespace) -> list[Cell]:
    """The cells that are asked for: of each task and seed all networks, the distilled one if it is asked for."""
    names = options.tasks or list(TASKS)
    if unknown := [name for name in names if name not in TASKS]:
        raise RecipeError(f"there is no task {unknown[0]!r}: choose from {', '.join(TASKS)}")
    seeds = SEEDS if options.seeds is None else numbers("--seeds", options.seeds, 0)
    networks = [network for network in COLUMNS if network != "distilled" or options.distil]
    return [
        {"task": name, "parents": parents, "network": network, "seed": seed}
        for parents in KNOWLEDGE
        for seed in seeds
        for name in names
        for network in networks
    ]


def scheme(options: argparse.Namespace) -> Cells:
    """How its rows are measured and kept."""
    return Cells(
        ("task", "parents", "network", "seed"),
        ("score", "second", "seconds"),
        partial(measure, options.parents, options.samples),
        texts=("note",),
    )


def add_options(options: argparse.ArgumentParser) -> None:
    """Which cells."""
    options.add_argument("--tasks", nargs="+", metavar="NAME", default=[], help=", ".join(TASKS))
    options.add_argument("--seeds", metavar="N,...", help="of the parents; 0,1,2")
    options.add_argument("--distil", action="store_true", help="also children that are distilled, which takes minutes")
    options.add_argument("--samples", type=int, default=0, metavar="N", help="train each parent on so few, for a trial")
    options.add_argument("--parents", type=Path, default=FOLDER, metavar="FOLDER", help="where trained ones are kept")


# --- tables -----------------------------------------------------------------------------------------------------------


def kept(rows: pd.DataFrame, network: str) -> list[float]:
    """What a network has of the better parent's score above the trivial one, for each seed that has all of them."""
    found = []
    for _, own in rows.groupby("seed"):
        score = own.set_index("network")["score"]
        if {"parent 1", "parent 2", "trivial", network} <= set(score.index):
            gains = score - score["trivial"]
            best = max((gains["parent 1"], gains["parent 2"]), key=abs)
            found.append(float(gains[network] / best))
    return found


def show(rows: pd.DataFrame, options: argparse.Namespace) -> str:
    """Scores, what children keep, the second scores, and what was refused or not refitted."""
    parts = []
    for knowledge in KNOWLEDGE:
        own = rows[rows["parents"] == knowledge]
        if own.empty:
            continue
        parts += [f"## Parents of {'one' if knowledge == 'same' else 'different'} knowledge"]
        parts += [_kept_table(own, knowledge)]
        parts += [_scores(own, "score", lambda task: task.score), _scores(own, "second", lambda task: task.second)]
    return "\n\n".join([*parts, *_notes(rows)])


def _kept_table(rows: pd.DataFrame, knowledge: str) -> str:
    """Per cent that the ensemble and the children keep; the least of all seeds in brackets."""
    columns = [network for network in ("ensemble", "naive", *RECIPES) if network in set(rows["network"])]
    between = ["knowledge"] if knowledge == "different" else []
    headers = ["task", *between, "seeds", *(COLUMNS[name] for name in columns)]
    lines = []
    for name, task in TASKS.items():
        own = rows[rows["task"] == name]
        if own.empty:
            continue
        cells = []
        for network in columns:
            shares = kept(own, network)
            estimate = Estimate.of(shares)
            least = f" ({100 * min(shares):.1f})" if len(shares) > 1 else ""
            cells.append("" if estimate is None else f"{100 * estimate.mean:.1f}{least}")
        lines.append([task.title, *([task.differ] if between else []), str(own["seed"].nunique()), *cells])
    return (
        "Per cent of the better parent's score above the trivial one, the mean over seeds and in brackets the least\n\n"
        + markdown(headers, lines)
    )


def _scores(rows: pd.DataFrame, column: str, of: Callable[[TrainedTask], Score]) -> str:
    """A score of every network, the mean over seeds with its interval."""
    networks = [network for network in COLUMNS if network in set(rows["network"])]
    lines = []
    for name, task in TASKS.items():
        own = rows[rows["task"] == name]
        if own.empty:
            continue
        estimates = [Estimate.of(own[own["network"] == network][column].tolist()) for network in networks]
        cells = ["" if found is None else found.text(digits=of(task).digits) for found in estimates]
        lines.append([f"{name}: {of(task).name}", *cells])
    return markdown(["score", *(COLUMNS[network] for network in networks)], lines)


def _notes(rows: pd.DataFrame) -> list[str]:
    """What could not be measured, and which refits were not kept."""
    told = rows[(rows["refused"] != "") | (rows["note"] != "")]
    if told.empty:
        return []
    lines = [
        f"- {row['task']}, {row['parents']}, {row['network']}, seed {row['seed']}: {row['refused'] or row['note']}"
        for row in told.to_dict("records")
    ]
    return ["**Refused, or a refit that was not kept**", "\n".join(lines)]


MEASUREMENT = Measurement("tasks", __doc__, wanted, scheme, show, add_options)
