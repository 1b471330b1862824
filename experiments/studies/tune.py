"""What `depfuse tune` finds: a search on one pair, and its best recipe judged on others, too.

    python -m experiments run tune --target resnet20 --threads 1

An hour for 100 trials on ResNet20; one thread. Resumed where it was cut off; no test image is seen before the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depfuse.cli import main as depfuse
from depfuse.errors import DepfuseError, RecipeError
from depfuse.recipe import Recipe
from depfuse.study.trials import TrialRecord, best_first
from experiments.lib.command import exit_code, given_files
from experiments.lib.layouts import by_cost, draw_by_cost
from experiments.lib.material import data_files
from experiments.lib.parents.families import Family, sets
from experiments.lib.parents.sets import SETS
from experiments.lib.places import MEASUREMENTS, SHARED
from experiments.lib.steps import Fusion
from experiments.lib.study import Study

# The first pair is searched on, the best recipe is tried on all.
TARGETS = {
    "resnet20": ("resnet20-8-1-8-2", "resnet20-8-1-8-3"),
    "resnet56": ("resnet56-3-5",),
    "simplenet": ("simplenet",),
    "digits": ("digits", "digits-skewed-1", "digits-skewed-2"),
}
KEPT = {"refit": "none", "weights": (0.5, 0.5)}
SEED = 0
DEFAULT = "(default settings)"


def search(name: str, file: str, trials: int, out: Path) -> TrialRecord:
    """Search on a pair until there are so many trials, and return the best."""
    pair = SETS[name]
    words = ["tune", *map(str, pair.paths), "--data", file, "--trials", str(trials), "--out", str(out), "--resume"]
    words += [
        "--calibration",
        str(_family(name).images),
        "--seed",
        str(SEED),
        "--set",
        "refit=none",
        "--weights",
        "0.5,0.5",
    ]
    given = {
        "--arch": pair.architecture and f"{SHARED}/models/{pair.architecture}",
        "--mean": pair.mean,
        "--std": pair.std,
    }
    words += [word for option, value in given.items() if value is not None for word in (option, value)]
    code = depfuse([*words, "--quiet"])
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise DepfuseError("the search did not come to its end")
    records = [TrialRecord.model_validate_json(path.read_bytes()) for path in sorted(out.glob("trial-*.json"))]
    return best_first(records, labelled=False)[0]


def settings_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What is otherwise than by default, but for what all cells share."""
    differing = Recipe.create(recipe).differing
    return {path: own for path, own in differing.items() if path not in ("calibration.images", "seed")}


def _family(name: str) -> Family:
    return sets(name)[name]


def run(options: argparse.Namespace) -> None:
    """Search, judge, and print the table."""
    if options.target not in TARGETS:
        raise RecipeError(f"there is no target {options.target!r}: choose from {', '.join(TARGETS)}")
    names = TARGETS[options.target]
    files = data_files([SETS[name] for name in names], given_files(options.npz))
    out = options.out or MEASUREMENTS / f"tune-{options.target}"
    best = search(names[0], files[SETS[names[0]].data], options.trials, out)
    assert best.recipe is not None
    found = settings_of(best.recipe)
    recipes = {DEFAULT: Fusion(KEPT), f"trial {best.trial} of {options.trials}": Fusion(found)}
    columns = {"accuracy": "per cent of the test images", "held_out_accuracy": "per cent of held-out training images"}
    parents = sets(*names)
    study = Study(f"tune-{options.target}", "", parents, {"recipe": recipes}, by_cost, draw_by_cost, columns=columns)
    words = ["--csv", str(options.csv or study.csv), "--limit-test", str(options.limit_test), "--seeds", str(SEED)]
    words += [word for pair in options.npz for word in ("--npz", pair)]
    words += ["--threads", str(options.threads)] if options.threads else []
    study.run(study.parser().parse_args(words))
    print(f"\nThe best trial: {json.dumps(found)}; {out / f'trial-{best.trial}.json'}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--target", metavar="NAME", default="resnet20", help=", ".join(TARGETS))
    options.add_argument("--trials", type=int, default=100, metavar="N", help="of the search, 100")
    options.add_argument("--out", type=Path, metavar="FOLDER", help="of the search")
    options.add_argument("--csv", type=Path, metavar="FILE")
    options.add_argument("--threads", type=int, metavar="N", help="where children are judged; all cores if left out")
    options.add_argument("--npz", action="append", default=[], metavar="DATA=FILE")
    options.add_argument("--limit-test", type=int, default=0, metavar="N", help="only N of the images, for tests")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all is well, 1 where cells failed, 2 where the request or the data are wrong."""
    return exit_code(run, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
