"""What `depfuse tune` finds, and what workers lose by sharing a study: one command each, both resumed if cut off.

    python -m experiments.studies.tune --target resnet20
    .ci/with-postgresql python -m experiments.studies.tune --throughput

**Target.** A search of 100 trials (equal shares, no refit) on the first pair of a target: on ResNet20, run8-1 + run8-2,
calibrated on 2,000 training images and judged by the cross-entropy under the parents' ensemble on 2,000 others, labels
unread. Then the best recipe and the default settings are each judged once on the test images, on that pair and on the
others of the target (run8-1 + run8-3), for which nothing is searched anew. A cell is per cent of the test images, and
after the slash of 5,000 training images that neither calibration nor the search saw (of the digits, which are too few,
images that the search may have seen). The study and its plots lie in the folder of --out.

**Throughput.** Workers on one study in PostgreSQL (the URL in DEPFUSE_POSTGRESQL) against as many independent searches,
each with its own file; digits, one thread each, trials of one matching method, so that they take about as long. The
time begins when all have found their channel groups, and ends with the last trial. Measured once with a second
objective, where no trial is given up and all do the same work, and once with one, where those behind the median are
given up: a shared study knows its median sooner; and with two objectives and refitted children, which are a fifth as
many and take ten times as long. `storage` is the share of a worker's time that it spends in calls of
the storage.

Rows are kept in a CSV as soon as they are measured; what is there is not measured again. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from depfuse.cli import main as depfuse
from depfuse.errors import DepfuseError, RecipeError
from depfuse.recipe import Recipe
from depfuse.study.trials import TrialRecord, best_first
from experiments.benchmarks.throughput import KEYS as RUN
from experiments.benchmarks.throughput import VALUES as FOUND
from experiments.benchmarks.throughput import WAYS, measure_throughput
from experiments.lib.cells import Study
from experiments.lib.command import exit_code, say
from experiments.lib.parents.sets import SETS, data_files
from experiments.lib.places import MEASUREMENTS, SHARED
from experiments.lib.tables import markdown
from experiments.studies.compare_recipes import KEYS, VALUES, cells_of, images_of, measure, table_of

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
    words += ["--calibration", str(images_of(name)), "--seed", str(SEED), "--refit", "none", "--weights", "0.5,0.5"]
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
    plain = Recipe().model_dump(mode="json")
    return {name: own for name, own in recipe.items() if own != plain[name] and name not in ("calibration", "seed")}


def run_target(options: argparse.Namespace) -> None:
    """Search, judge, and print the table."""
    if options.target not in TARGETS:
        raise RecipeError(f"there is no target {options.target!r}: choose from {', '.join(TARGETS)}")
    sets = TARGETS[options.target]
    files = data_files([SETS[name] for name in sets], dict(given.partition("=")[::2] for given in options.npz))
    out = options.out or MEASUREMENTS / f"tune-{options.target}"
    trials = options.trials or 100
    best = search(sets[0], files[SETS[sets[0]].data], trials, out)
    assert best.recipe is not None
    found = settings_of(best.recipe)
    recipes = {DEFAULT: dict(KEPT), f"trial {best.trial} of {trials}": found}
    scheme = Study(KEYS, VALUES, partial(measure, files, "cpu"), ("note",), unsaid=KEYS[2:])
    cells = cells_of(sets, recipes, SEED, options.limit_test)
    csv = options.csv or MEASUREMENTS / f"tune-{options.target}.csv"
    rows = scheme.rows_of(scheme.run(csv, cells, threads=options.threads, say=say), cells)
    print(table_of(rows, sets, list(recipes)))
    print(f"\nThe best trial: {json.dumps(found)}; {out / f'trial-{best.trial}.json'}")


def run_throughput(options: argparse.Namespace) -> None:
    """Measure all rounds, and print the table."""
    url = os.environ.get("DEPFUSE_POSTGRESQL")
    if url is None:
        raise RecipeError("DEPFUSE_POSTGRESQL holds no URL of a database: run this by .ci/with-postgresql")
    trials = options.trials or 25
    cells = [
        {"round": number, "objectives": objectives, "refit": refit, "way": way, "workers": options.workers, "trials": n}
        for number in range(options.rounds)
        for objectives, refit, n in ((2, "none", trials), (1, "none", trials), (2, "ridge", max(1, trials // 5)))
        for way in WAYS
    ]
    scheme = Study(RUN, FOUND, partial(measure_throughput, url))
    table = scheme.run(options.csv or MEASUREMENTS / "tune-throughput.csv", cells, say=say)
    print(throughput_table(scheme.rows_of(table, cells)))


def throughput_table(rows: pd.DataFrame) -> str:
    """A line per kind of trial: medians over the rounds, and the ratio of each round's two figures."""
    head = [
        "refit",
        "objectives",
        *(f"trials/s {way}" for way in WAYS),
        "ratio by round",
        "median",
        "storage",
        "ms a trial",
    ]
    lines = []
    for (refit, objectives), own in rows.groupby(["refit", "objectives"], sort=False):
        by_round = own.pivot_table(index="round", columns="way", values="trials_per_second")
        ratios = (by_round["shared"] / by_round["independent"]).dropna()
        shared = own[own["way"] == "shared"]
        lines.append(
            [
                str(refit),
                str(objectives),
                *(f"{by_round[way].median():.2f}" for way in WAYS),
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
                f"{ratios.median():.2f}",
                f"{100 * shared['storage_share'].median():.1f} %",
                f"{1000 * shared['storage_seconds_per_trial'].median():.0f}",
            ]
        )
    return markdown(head, lines)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", metavar="NAME", help=", ".join(TARGETS))
    what.add_argument("--throughput", action="store_true")
    options.add_argument("--trials", type=int, metavar="N", help="of the search, 100; or of each worker, 25")
    options.add_argument("--workers", type=int, default=4, metavar="N")
    options.add_argument("--rounds", type=int, default=3, metavar="N")
    options.add_argument("--out", type=Path, metavar="FOLDER", help="of the search")
    options.add_argument("--csv", type=Path, metavar="FILE")
    options.add_argument("--threads", type=int, metavar="N", help="where children are judged; all cores if left out")
    options.add_argument("--npz", action="append", default=[], metavar="DATA=FILE")
    options.add_argument("--limit-test", type=int, default=0, metavar="N", help="only N of the images, for tests")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all is well, 1 where cells failed, 2 where the request or the data are wrong."""
    options = parser().parse_args(arguments)
    return exit_code(run_throughput if options.throughput else run_target, options)


if __name__ == "__main__":
    sys.exit(main())
