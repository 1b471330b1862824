"""Every published method that comes with depfuse over the real pairs: accuracy of the child, and seconds, in one run.

    python -m experiments.studies.compare_recipes

Rows are `depfuse fuse --recipe NAME` at equal shares from 2,000 calibration images (digits: 900), one seed; beside them
the default settings and our own best, `--refit ridge`. Sets of parents are those of parent_sets.py. A cell of the table
is per cent of all test images, which nothing is chosen by, and after the slash of the training images that calibration
did not see (5,000; a quarter of the digits'). Seconds are those of the processor without finding groups and without
evaluation, the mean over sets. A row of the CSV is kept as soon as it is measured; what is there is not measured again.
Prints Markdown.

Found, seed 0, one thread of an AMD EPYC with AVX512-bf16, means over the four ResNet20 pairs of CIFAR-10 (parents 91.6
to 92.7 per cent of the test images): pleas 80.5, regmean 70.3, repair 63.5, depgraph-ot-activations 62.3, cca 62.3,
fisher 62.2, zip-it 61.1, ot-fusion 50.6, and by weights alone c2m3 41.2, git-re-basin 38.6, depgraph-ot-weights 37.8,
graph-matching 30.2; the default settings 64.3, --refit ridge 89.0. On the halves of CIFAR-10 pleas has 60.7, zip-it
43.0 and --refit ridge 77.9. On the SimpleNets (84.18 and 83.81) cca has 94.4 and is behind those that refit layers only
(pleas 95.3, regmean 94.9, --refit ridge 95.6); graph-matching has 89.7, where 53.74 are published (pygmtools' example).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from depfuse import Recipe, fuse
from depfuse.data import calibration_loader
from depfuse.distributed.device import resolve_device
from depfuse.errors import DepfuseError, LimitWarning, RecipeError
from depfuse.evaluate import evaluate
from depfuse.recipe.presets import names, published
from experiments.lib.cells import Cell, Study, StudyError
from experiments.lib.parents.sets import DIGITS, SETS, data_files, material
from experiments.lib.places import MEASUREMENTS
from experiments.lib.tables import markdown

CSV = MEASUREMENTS / "compare_recipes.csv"
PAIRS = (
    "resnet20-8-1-8-2", "resnet20-8-1-8-3", "resnet20-8-2-8-3", "resnet20-1-4", "simplenet", "digits", "resnet56-3-5",
    "cifar100", "halves", "own-halves",
)  # fmt: skip
OURS: dict[str, dict[str, Any]] = {"(default settings)": {}, "(--refit ridge)": {"refit": "ridge"}}
KEYS = ("set", "recipe", "seed", "images", "test_limit", "settings")
VALUES = ("accuracy", "held_out_accuracy", "seconds", "cpu_seconds")


def settings_of(recipe: str) -> dict[str, Any]:
    """What a row of the table is made by."""
    return dict(OURS[recipe]) if recipe in OURS else dict(published(recipe).settings)


def measure(files: Mapping[str, str], device: str, cell: Cell) -> dict[str, Any]:
    """Fuse one pair by one recipe on a device, and judge the child."""
    images, seed, limit = (int(cell[name]) for name in ("images", "seed", "test_limit"))
    of = material(cell["set"], files[SETS[cell["set"]].data], torch.device(device))
    data, groups = of.inputs.data, of.groups
    recipe = Recipe.create(**json.loads(cell["settings"]), calibration=images, seed=seed)
    calibration = calibration_loader(data, images, batch_size=recipe.batch_size, device=device, seed=seed)
    started, begun = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)  # noted in the row
        labels = None if of.inputs.labels is None else of.inputs.labels.sets
        given: dict[str, Any] = {"groups": groups, "labels": labels, "template": of.template}
        result = fuse(of.inputs.models, recipe, calibration, example=data.example(device=device), **given)
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - begun}
    held_out = of.held_out(images, seed, limit)
    assert held_out is not None
    return {
        **took,
        "accuracy": evaluate(result.child, of.test(limit)).accuracy,
        "held_out_accuracy": evaluate(result.child, held_out).accuracy,
        "note": "; ".join(result.not_converged),
    }


def images_of(name: str) -> int:
    """Calibration images of a set of parents."""
    return 900 if SETS[name].kind == DIGITS else 2000


def cells_of(
    sets: Sequence[str], recipes: Mapping[str, Mapping[str, Any]], seed: int, limit: int
) -> list[dict[str, Any]]:
    """All cells, set by set; recipes are settings by name."""
    return [
        {
            "set": name,
            "recipe": recipe,
            "seed": seed,
            "images": images_of(name),
            "test_limit": limit,
            "settings": json.dumps(settings, sort_keys=True),
        }
        for name in sets
        for recipe, settings in recipes.items()
    ]


def table_of(rows: pd.DataFrame, sets: Sequence[str], recipes: Sequence[str]) -> str:
    """Recipes as rows and sets as columns."""
    known = {(row["set"], row["recipe"]): row for row in rows.to_dict("records")}
    lines = []
    for recipe in recipes:
        own = [known.get((name, recipe)) for name in sets]
        there = [row for row in own if row is not None and not row["refused"]]
        cells = ["" if row is None else row["refused"] or _percents(row) for row in own]
        seconds = sum(row["cpu_seconds"] for row in there) / len(there) if len(there) == len(sets) else None
        lines.append([recipe, *cells, "" if seconds is None else f"{seconds:.1f}"])
    titles = [SETS[name].title if SETS[name].kind != DIGITS else f"digits {SETS[name].title}" for name in sets]
    return markdown(["recipe", *titles, "seconds"], lines)


def _percents(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.2f} / {100 * row['held_out_accuracy']:.2f}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sets", nargs="+", metavar="NAME", default=list(PAIRS))
    options.add_argument("--recipes", nargs="+", metavar="NAME", default=[*names(), *OURS])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--csv", type=Path, default=CSV, metavar="FILE")
    options.add_argument("--device", default="cpu")
    options.add_argument("--processes", type=int, default=1, metavar="N", help="cells at a time; 1")
    options.add_argument("--threads", type=int, metavar="N", help="of each process; together all cores if left out")
    options.add_argument("--npz", action="append", default=[], metavar="DATA=FILE")
    options.add_argument("--limit-test", type=int, default=0, metavar="N", help="only N of the images, for tests")
    options.add_argument("--tables-only", action="store_true", help="measure nothing")
    return options


def run(options: argparse.Namespace) -> None:
    """Measure what is not there, and print the table."""
    if unknown := [name for name in options.sets if name not in SETS]:
        raise RecipeError(f"there is no set of parents {unknown[0]!r}: choose from {', '.join(SETS)}")
    recipes = {recipe: settings_of(recipe) for recipe in options.recipes}
    cells = cells_of(options.sets, recipes, options.seed, options.limit_test)
    if options.tables_only:
        scheme = Study(KEYS, VALUES, partial(measure, {}, options.device), ("note",))
        table = scheme.read(options.csv)
    else:
        given = dict(pair.partition("=")[::2] for pair in options.npz)
        files, device = data_files([SETS[name] for name in options.sets], given), str(resolve_device(options.device))
        scheme = Study(KEYS, VALUES, partial(measure, files, device), ("note",), unsaid=KEYS[2:])
        say = partial(print, file=sys.stderr, flush=True)
        table = scheme.run(options.csv, cells, processes=options.processes, threads=options.threads, say=say)
    print(table_of(scheme.rows_of(table, cells), options.sets, options.recipes))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all is well, 1 where cells failed, 2 where the request or the data are wrong."""
    try:
        run(parser().parse_args(arguments))
    except DepfuseError as error:
        print(error, file=sys.stderr)
        return 2
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
