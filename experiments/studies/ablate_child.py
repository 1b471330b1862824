"""Every step of a fusion alone and together: what each gives, and what it costs.

    python -m experiments.studies.ablate_child
    python -m experiments.studies.ablate_child --list
    python -m experiments.studies.ablate_child --tables-only

For every set of parents (parent_sets.py), step (child_steps.py), seed and number of calibration images there is a row
in the CSV, kept as soon as it is measured; rows that are there are not measured again. A row has

- accuracy and cross-entropy (nats) on all test images, which nothing is chosen by;
- accuracy on 5,000 training images that calibration did not see (a quarter of the digits'), and the share of them on
  which the network names the same class as the parents' ensemble as it teaches a refitted child;
- parameters relative to the first parent, and seconds: in all, of each part, and of the processor (all threads added
  up, which other work on the machine does not change); without finding and proving the parents' groups, and without
  evaluation;
- the processor and torch's threads.

Seeds draw the calibration images and everything random after that. Children have equal shares. Steps that train are
measured with `--distil` (one epoch, without the held-out images), matchings chosen group by group with `--by-group`.
`--processes` measures several cells at a time, each with its part of the cores; `--cost cpu` then shows the seconds of
the processor instead of the clock's. Prints one table per kind of parents in Markdown, means with 95 % confidence
intervals over seeds; `--plot` draws accuracy against seconds.

Found, on digits pairs 0 to 4 (500 test images, seed 0, one thread of an AMD EPYC; the table is in the README), means:
matching and BatchNorm reset bring the naive average from 38.2 to 75.5 per cent, ridge to 88.3 with the parents as they
are, 98.1 with their statistics renewed, and 98.8 with one head of theirs besides, found without labels (98.7 from 500
labels). Their ensemble has 89.2, with renewed statistics 98.4, with one head 98.9.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.data import Loader, calibration_loader
from depfuse.distributed.device import resolve_device
from depfuse.errors import LimitWarning, RecipeError
from depfuse.evaluate import evaluate
from depfuse.networks.running import evaluating
from depfuse.teach.distil import Further
from experiments.lib.baselines import BASELINES, Seen
from experiments.lib.cells import Cell, Study
from experiments.lib.command import check_counts, check_plot, common_options, exit_code, measured, numbers
from experiments.lib.parents.sets import SETS, ZOO, Joint, Material, data_files, ensemble, material, teachers
from experiments.lib.places import MEASUREMENTS
from experiments.lib.size import keep_worst_for, parameters
from experiments.lib.steps import STEPS, Fusion, Step
from experiments.lib.tables import cost_table, draw_costs

CSV = MEASUREMENTS / "ablate_child.csv"
PARTS = ("align", "choose", "merge", "refit", "renorm", "distil")
KEYS = ("set", "step", "seed", "images", "test_limit", "settings")
VALUES = (
    "accuracy", "loss", "held_out_accuracy", "agreement", "parameters", "seconds", "cpu_seconds",
    *(f"seconds_{part}" for part in PARTS),
)  # fmt: skip
SHOWN = {
    "accuracy": ("accuracy", 100.0, 1, "per cent of the test images"),
    "loss": ("loss", 1.0, 3, "cross-entropy on the test images, nats"),
    "held-out": ("held_out_accuracy", 100.0, 1, "per cent of held-out training images"),
    "agreement": ("agreement", 100.0, 1, "per cent of held-out training images with the ensemble's class"),
}

COSTS = {"clock": ("seconds", "seconds"), "cpu": ("cpu_seconds", "CPU seconds")}


# --- one cell --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What every process must know: where the data lie, and the device."""

    files: Mapping[str, str]
    device: str


def measure(setup: Setup, cell: Cell) -> dict[str, Any]:
    """Make the network of one cell and judge it."""
    images, seed, limit = (int(cell[name]) for name in ("images", "seed", "test_limit"))
    device = torch.device(setup.device)
    of = material(cell["set"], setup.files[SETS[cell["set"]].data], device)
    calibration = _calibration(of, images, seed)
    seen, step = Seen(of, calibration, images, seed), STEPS[cell["step"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)  # noted in the row
        network, found = _fused(seen, step) if isinstance(step, Fusion) else _compared(seen, step)
    scores = evaluate(network, of.test(limit))
    found |= {"accuracy": scores.accuracy, "loss": scores.loss}
    found["parameters"] = parameters(network) / parameters(of.inputs.models[0])
    held_out = of.held_out(images, seed, limit)
    if held_out is not None:
        named = _classes(network, held_out)
        found["held_out_accuracy"] = _share(named, held_out.labels)
        found["agreement"] = _share(named, _named_by_teachers(of, images, seed, limit))
    if device.type == "cuda":
        found["machine"] = torch.cuda.get_device_name(device)
    return found


def _calibration(of: Material, images: int, seed: int) -> Loader | None:
    if images == 0:
        return None
    batch_size = Recipe().batch_size
    return calibration_loader(of.inputs.data, images, batch_size=batch_size, device=of.inputs.device, seed=seed)


def _compared(seen: Seen, step: Step) -> tuple[nn.Module, dict[str, Any]]:
    assert not isinstance(step, Fusion)
    seen.of.groups  # noqa: B018  found before the clock starts
    started, begun = time.perf_counter(), time.process_time()
    network = BASELINES[step.what](seen, **step.arguments)
    _wait_for(seen.of.inputs.device)
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - begun}
    made = step.images or step.what == "naive"  # parents and their ensemble are there without any work
    return network, took if made else dict.fromkeys(took, 0.0)


def _fused(seen: Seen, step: Fusion) -> tuple[nn.Module, dict[str, Any]]:
    of, inputs = seen.of, seen.of.inputs
    settings, note = dict(step.settings), []
    example = inputs.data.example(device=inputs.device)
    if step.times:
        settings["keep_worst"] = keep_worst_for(step.times, inputs.models, of.groups, example, of.template)
        note.append(f"keep_worst {settings['keep_worst']:.4g}")
    recipe = Recipe.create(**{"refit": "none", **settings}, calibration=seen.images, seed=seen.seed)
    further = Further(of.without_held_out(seen.images, seen.seed)) if step.trains else None
    begun: dict[str, float] = {}

    def begin(part: str) -> None:
        begun[part] = time.process_time()

    begin("fuse")
    started = time.perf_counter()
    result = fuse(
        inputs.models,
        recipe,
        seen.calibration,
        example=example,
        groups=None if recipe.labelled else of.groups,  # one head is another network
        labels=None if inputs.labels is None else inputs.labels.sets,
        template=of.template,
        further=further,
        on_step=begin,
    )
    _wait_for(inputs.device)
    found = {
        "seconds": time.perf_counter() - started - result.seconds["groups"],
        "cpu_seconds": time.process_time() - begun["fuse"] - (begun["align"] - begun["groups"]),
    }
    found |= {f"seconds_{part}": result.seconds.get(part, 0.0) for part in PARTS}
    return result.child, {**found, "note": "; ".join([*note, *result.not_converged])}


@lru_cache(maxsize=4)
def _named_by_teachers(of: Material, images: int, seed: int, limit: int) -> Tensor:
    """The classes (N,) that the parents' ensemble names on the held-out images."""
    calibration, held_out = _calibration(of, images, seed), of.held_out(images, seed, limit)
    assert held_out is not None
    if calibration is None:
        return _classes(ensemble(of), held_out)
    taught = teachers(of, calibration)
    return _classes(Joint(taught.models, of.shares, taught.labels), held_out)


def _classes(network: nn.Module, loader: Loader) -> Tensor:
    with torch.inference_mode(), evaluating(network):
        return torch.cat([network(images).argmax(1) for images, _ in loader])


def _share(first: Tensor, second: Tensor) -> float:
    return float((first == second).double().mean())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- all cells -------------------------------------------------------------------------------------


def chosen_steps(patterns: Sequence[str], *, distil: bool, by_group: bool) -> dict[str, Step]:
    """The steps that were asked for.

    Raises
    ------
    RecipeError
        A pattern fits no step, or only such as `--distil` or `--by-group` ask for.
    """
    found = {}
    for name, step in STEPS.items():
        asked = (distil or not step.trains) and (by_group or not (isinstance(step, Fusion) and step.by_group))
        if asked and (not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)):
            found[name] = step
    for pattern in patterns:
        fits = [name for name in STEPS if fnmatchcase(name, pattern)]
        if not fits:
            raise RecipeError(f"there is no step {pattern!r}: --list names all")
        if not any(name in found for name in fits):
            option = "--distil" if STEPS[fits[0]].trains else "--by-group"
            raise RecipeError(f"step {fits[0]!r} takes long: ask for it with {option}")
    return found


def cells_of(
    sets: Sequence[str], steps: Mapping[str, Step], seeds: Sequence[int], images: Sequence[int], limit: int
) -> list[dict[str, Any]]:
    """All cells of a study, set by set; a step that sees no images has one per set, of seed 0."""
    found = []
    for name in sets:
        for count in (0, *images):
            for step, declared in steps.items():
                if declared.images == (count > 0) and declared.suits(SETS[name]):
                    drawn = seeds if declared.images else (0,)
                    cell = {"set": name, "step": step, "images": count, "test_limit": limit}
                    found += [{**cell, "settings": declared.described, "seed": seed} for seed in drawn]
    return found


def check(steps: Mapping[str, Step], cells: Sequence[Cell], images: Sequence[int], patterns: Sequence[str]) -> None:
    """Raise `RecipeError` where a pattern gives nothing to do, or the recipe of a step is contradictory."""
    there = {cell["step"] for cell in cells}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in there):
            raise RecipeError(f"step {pattern!r} cannot be measured on any of the chosen parents: choose others")
    if not there:
        raise RecipeError("there is nothing to measure: choose other steps")
    for name, step in steps.items():
        for count in images if name in there else ():
            try:
                Recipe.create(**step.asks, calibration=count)
            except RecipeError as error:
                raise RecipeError(f"step {name!r} with --images {count}: {error}") from None


def study(setup: Setup) -> Study:
    """The scheme of this ablation."""
    return Study(keys=KEYS, values=VALUES, measure=partial(measure, setup), texts=("note",), unsaid=KEYS[4:])


# --- what is shown ---------------------------------------------------------------------------------


def tables(table: pd.DataFrame, shown: Sequence[str], cost: str) -> str:
    """One table per value, kind of parents and number of images, in Markdown; and what could not be measured."""
    parts = []
    for value in shown:
        column, scale, digits, meaning = SHOWN[value]
        for kind in dict.fromkeys(parents.kind for parents in SETS.values()):
            sets = {name: SETS[name].title for name in SETS if SETS[name].kind == kind and name in set(table["set"])}
            for count in _counts(table[table["set"].isin(sets)]):
                rows = table[table["images"].isin(["0", count])]
                text = cost_table(rows, column, sets, list(STEPS), COSTS[cost], scale, digits)
                parts.append(f"**{kind}**, {count} calibration images, {meaning}\n\n{text}")
    return "\n\n".join([*parts, *not_possible(table)])


def not_possible(table: pd.DataFrame) -> list[str]:
    """A list in Markdown of what could not be measured; empty where there is nothing of the kind."""
    refused = table[table["refused"] != ""].drop_duplicates(["set", "step", "refused"])
    lines = [f"- {row['set']}, {row['step']}: {row['refused']}" for row in refused.to_dict("records")]
    return ["Not possible:\n\n" + "\n".join(lines)] if lines else []


def draw(table: pd.DataFrame, path: Path, cost: str) -> None:
    """A panel for each set of parents and number of images."""
    panels: dict[str, pd.DataFrame] = {}
    for name in [name for name in SETS if name in set(table["set"])]:
        own = table[table["set"] == name]
        title = f"{SETS[name].kind}: {SETS[name].title}"
        panels |= {f"{title}, {count} images": own[own["images"].isin(["0", count])] for count in _counts(own)}
    draw_costs(panels, list(STEPS), path, COSTS[cost])


def _counts(table: pd.DataFrame) -> list[str]:
    """The numbers of calibration images in a table; 0 alone where nothing has seen any."""
    found = sorted(set(table["images"]), key=int)
    return [count for count in found if count != "0"] or found


# --- the command -----------------------------------------------------------------------------------


def measuring_options(options: argparse.ArgumentParser) -> None:
    """Options about how a step is measured, and on what."""
    options.add_argument("--cost", choices=COSTS, default="clock", help="seconds of the clock or of the processor")
    options.add_argument("--device", default="cpu")
    options.add_argument("--npz", action="append", default=[], metavar="DATA=FILE")
    options.add_argument("--limit-test", type=int, default=0, metavar="N", help="only N of the images, for tests")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = common_options(__doc__, CSV)
    options.add_argument("--sets", nargs="+", metavar="NAME", default=[])
    options.add_argument("--steps", nargs="+", metavar="PATTERN", default=[], help="like 'matched, reset' or 'ridge*'")
    options.add_argument("--seeds", metavar="N,...", help="of the calibration images and all that follows; 0")
    options.add_argument("--images", metavar="N,...", help="numbers of calibration images; 2000")
    options.add_argument("--distil", action="store_true", help="also steps that train")
    options.add_argument("--by-group", action="store_true", help="also matchings chosen group by group")
    options.add_argument("--show", nargs="+", choices=SHOWN, default=["accuracy"])
    measuring_options(options)
    return options


def run(options: argparse.Namespace) -> None:
    """Measure and show what was asked for."""
    if options.list:
        print("\n".join(["Sets:", *(f"  {name}" for name in SETS), "Steps:", *(f"  {name}" for name in STEPS)]))
        return
    check_plot(options.plot)
    if unknown := [name for name in options.sets if name not in SETS]:
        raise RecipeError(f"there is no set of parents {unknown[0]!r}: choose from {', '.join(SETS)}")
    sets = options.sets or [name for name, parents in SETS.items() if parents.kind != ZOO or not parents.lacks]
    table = shown_rows(options, sets) if options.tables_only else measured_rows(options, sets)
    print(tables(table, options.show, options.cost))
    if options.plot is not None:
        draw(table, options.plot, options.cost)


def shown_rows(options: argparse.Namespace, sets: Sequence[str]) -> pd.DataFrame:
    """The rows of the CSV that were asked for, of all seeds and images, by steps as they are declared now."""
    given = [name for name in ("seeds", "images", "processes", "threads") if getattr(options, name) is not None]
    given += [name for name in ("distil", "by_group", "retry", "npz") if getattr(options, name)]
    if given:
        raise RecipeError(f"--tables-only measures nothing: leave out --{given[0].replace('_', '-')}")
    if not options.csv.exists():
        raise RecipeError(f"there is no file {options.csv} to make tables of: leave out --tables-only")
    steps = chosen_steps(options.steps, distil=True, by_group=True)
    table = study(Setup({}, "cpu")).read(options.csv)
    wanted = [
        row["set"] in sets
        and row["step"] in steps
        and row["settings"] == steps[row["step"]].described
        and row["test_limit"] == str(options.limit_test)
        for row in table.to_dict("records")
    ]
    if not any(wanted):
        raise RecipeError(f"{options.csv} has no row of these sets and steps: leave out --tables-only to measure them")
    return table[wanted]


def measured_rows(options: argparse.Namespace, sets: Sequence[str]) -> pd.DataFrame:
    """The rows of what was asked for, once all of it has been measured."""
    seeds, images = numbers("--seeds", options.seeds or "0", 0), numbers("--images", options.images or "2000", 2)
    check_counts(options, limit_test=0)
    steps = chosen_steps(options.steps, distil=options.distil, by_group=options.by_group)
    lacking = {name: step.lacks() for name, step in steps.items() if step.lacks()}
    if lacking:
        named = ", ".join(f"{name!r} ({setting})" for name, setting in lacking.items())
        print(f"left out, since this version of depfuse has no such setting: {named}", file=sys.stderr)
        steps = {name: step for name, step in steps.items() if name not in lacking}
    cells = cells_of(sets, steps, seeds, images, options.limit_test)
    wanted = [pattern for pattern in options.steps if not any(fnmatchcase(name, pattern) for name in lacking)]
    check(steps, cells, images, wanted)
    files = data_files([SETS[name] for name in sets], dict(pair.partition("=")[::2] for pair in options.npz))
    scheme = study(Setup(files, str(resolve_device(options.device))))
    return scheme.rows_of(measured(scheme, cells, options), cells)


def main() -> int:
    """0 where all is well, 1 where cells failed, 2 where the request or the data are wrong."""
    return exit_code(run, parser().parse_args())


if __name__ == "__main__":
    sys.exit(main())
