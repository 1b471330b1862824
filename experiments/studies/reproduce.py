"""The published table, and ours beside it: ResNet18 pairs fused by optimal transport on DepGraph's groups.

    python -m experiments.studies.reproduce

A row is a pair of parents, a column a network made of them: the parents, the ensemble of their logits, the plain
average, the published method by activations and by weights (the recipes depgraph-ot-activations and
depgraph-ot-weights, with BatchNorm reset), our best without refit, with it, and with `--goal best`; with `--distil`
also refitted and then distilled for three epochs, which takes minutes. What was published stands beside the pairs that
it was published for, ResNet18 of full width. Rows of the zoo's networks that nobody has trained say how to train them,
and are measured as soon as these are there.

Our best without refit is the one of a few recipes (`CANDIDATES`; with `--by-group` one that takes minutes is added)
whose child has the highest accuracy on held-out training images, for each pair by itself; its seconds are those of all
candidates. Nothing is chosen by test images.

Children have equal shares and see 2,000 calibration images without labels. Three tables are printed in Markdown: per
cent of all test images; of 5,000 training images that calibration did not see (which the parents were trained on); and
seconds, without finding and proving the groups and without evaluation. `--plot` draws accuracy against seconds. Each
cell is a row of a CSV, kept as soon as it is measured; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import pandas as pd

from depfuse.distributed.device import resolve_device
from depfuse.errors import RecipeError
from experiments.lib.command import check_counts, check_plot, common_options, exit_code, numbers, rows_of
from experiments.lib.parents.sets import SETS, data_files
from experiments.lib.parents.shared import PAIRS
from experiments.lib.places import MEASUREMENTS
from experiments.lib.steps import STEPS, Fusion, Step
from experiments.lib.tables import Estimate, draw_costs, estimates, markdown
from experiments.studies.ablate_child import COSTS, Setup, cells_of, check, measuring_options, not_possible, study

CSV = MEASUREMENTS / "reproduce.csv"
SHOWN = (
    "cifar10-resnet18", "cifar100-resnet18", "cifar10-resnet18-width16", "cifar100", "resnet20-8-1-8-2",
    "resnet20-8-1-8-3", "resnet20-8-2-8-3", "resnet20-1-4", "resnet56-3-5",
)  # fmt: skip
# Set -> child by activations, by weights, and the parents; per cent of the test images.
PUBLISHED = {
    "cifar10-resnet18": "92.16 / 91.80 of 94.99 / 94.76",
    "cifar100-resnet18": "63.11 / 60.44 of 75.88 / 75.72",
}
BEST = "best without refit"
CANDIDATES = {
    "matched, reset": "default",
    "matched softly, reset": "sinkhorn 0.1",
    "matched as searched, repair": "searched",
    "matched by group, reset": "by group",
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "parents": ("parent 1", "parent 2"),
    "ensemble": ("ensemble",),
    "naive": ("naive average",),
    "naive, reset": ("naive average, reset",),
    "OT, activations": ("depgraph-ot-activations",),
    "OT, weights": ("depgraph-ot-weights",),
    BEST: tuple(CANDIDATES),
    "refit ridge": ("ridge: clusters, second pass",),
    "refit ridge, distil 3": ("ridge, distilled for three epochs",),
    "goal best": ("goal best",),
}
FREE = ("parents", "ensemble")  # are there without any work


def columns_of(headings: Sequence[str], *, distil: bool, by_group: bool) -> dict[str, dict[str, Step]]:
    """Heading -> its steps by name, without those that take minutes unless they are asked for.

    Raises
    ------
    RecipeError
        A heading does not exist, or stands for nothing but what `--distil` asks for.
    """
    if unknown := [heading for heading in headings if heading not in COLUMNS]:
        raise RecipeError(f"there is no column {unknown[0]!r}: choose from {', '.join(COLUMNS)}")
    found = {}
    for heading in headings or COLUMNS:
        steps = {name: STEPS[name] for name in COLUMNS[heading]}
        own = {name: step for name, step in steps.items() if _asked(step, distil=distil, by_group=by_group)}
        if own:
            found[heading] = own
        elif headings:
            raise RecipeError(f"column {heading!r} takes minutes: ask for it with --distil")
    return found


def _asked(step: Step, *, distil: bool, by_group: bool) -> bool:
    return (distil or not step.trains) and (by_group or not (isinstance(step, Fusion) and step.by_group))


# --- the tables ------------------------------------------------------------------------------------


def tables(table: pd.DataFrame, sets: Sequence[str], columns: Mapping[str, Mapping[str, Step]], cost: str) -> str:
    """Accuracy on test images and on held-out training images, and seconds; and what could not be measured."""
    parts = []
    for title, value, scale, digits in (
        ("Per cent of the test images", "accuracy", 100.0, 2),
        ("Per cent of held-out training images", "held_out_accuracy", 100.0, 2),
        (f"{COSTS[cost][1][0].upper()}{COSTS[cost][1][1:]}", COSTS[cost][0], 1.0, 1),
    ):
        in_seconds = value == COSTS[cost][0]
        headings = [heading for heading in columns if not (in_seconds and heading in FREE)]
        published = value == "accuracy" and any(name in PUBLISHED for name in sets)
        rows = [
            [
                title_of(name),
                *_cells(table, name, {heading: columns[heading] for heading in headings}, value, scale, digits),
                *([PUBLISHED.get(name, "")] if published else []),
            ]
            for name in sets
            if value == "accuracy" or not SETS[name].lacks
        ]
        last = ["published: activations / weights of parents"] if published else []
        if rows:
            parts.append(f"**{title}**\n\n{markdown(['networks', *headings, *last], rows)}")
    return "\n\n".join([*parts, *not_possible(table)])


def title_of(name: str) -> str:
    """What a row is called."""
    if name not in PAIRS:
        return SETS[name].title
    data = {"cifar10": "CIFAR-10", "mnist": "MNIST"}[PAIRS[name].data]
    return f"{PAIRS[name].name}, {data}"


def _cells(
    table: pd.DataFrame, name: str, columns: Mapping[str, Mapping[str, Step]], value: str, scale: float, digits: int
) -> list[str]:
    """One row of a table: what was measured of a pair, or how to make it possible."""
    if SETS[name].lacks:
        return [f"open: {SETS[name].lacks}", *[""] * (len(columns) - 1)]
    found = {step: estimate for (step, _), estimate in _of(table, name, value).items()}
    cells = []
    for heading, steps in columns.items():
        own = [found[step] for step in steps if step in found]
        if len(own) < len(steps):
            cells.append("")  # never a choice among some of the candidates
        elif heading == BEST:
            cells.append(_best(table, name, list(steps), found, value, scale, digits))
        else:
            cells.append(" / ".join(estimate.text(scale, digits) for estimate in own))
    return cells


def _best(
    table: pd.DataFrame,
    name: str,
    steps: Sequence[str],
    found: Mapping[str, Estimate],
    value: str,
    scale: float,
    digits: int,
) -> str:
    """The candidate that is best on held-out images."""
    if value in dict(COSTS.values()):
        return f"{scale * sum(found[step].mean for step in steps):.{digits}f}"
    held_out = {step: estimate.mean for (step, _), estimate in _of(table, name, "held_out_accuracy").items()}
    if not held_out.keys() >= set(steps):
        return ""  # calibration takes all images
    best = max(steps, key=lambda step: held_out[step])
    return f"{found[best].text(scale, digits)} ({CANDIDATES[best]})"


def _of(table: pd.DataFrame, name: str, value: str) -> dict[tuple[str, str], Estimate]:
    return estimates(table[table["set"] == name], "step", "set", value)


# --- the command -----------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = common_options(__doc__, CSV)
    options.add_argument("--sets", nargs="+", metavar="NAME", default=list(SHOWN))
    options.add_argument("--columns", nargs="+", metavar="HEADING", default=[])
    options.add_argument("--distil", action="store_true", help="also refitted and distilled for three epochs")
    options.add_argument("--by-group", action="store_true", help="also choose among matchings group by group")
    options.add_argument("--seeds", metavar="N,...", default="0", help="of the calibration images and what follows")
    options.add_argument("--images", type=int, default=2000, metavar="N", help="number of calibration images")
    measuring_options(options)
    return options


def run(options: argparse.Namespace) -> None:
    """Measure what is not there, and print the tables."""
    if options.list:
        print("\n".join(["Sets:", *(f"  {name}" for name in SHOWN), "Columns:", *(f"  {name}" for name in COLUMNS)]))
        return
    check_plot(options.plot)
    check_counts(options, images=2, limit_test=0)
    if unknown := [name for name in options.sets if name not in SETS or len(SETS[name].files) != 2]:
        raise RecipeError(f"there is no pair {unknown[0]!r}: choose from {', '.join(SHOWN)}")
    columns = columns_of(options.columns, distil=options.distil, by_group=options.by_group)
    steps = {name: step for own in columns.values() for name, step in own.items()}
    there = [name for name in options.sets if not SETS[name].lacks]
    cells = cells_of(there, steps, numbers("--seeds", options.seeds, 0), [options.images], options.limit_test)
    if options.plot is not None and not there:
        raise RecipeError("none of these pairs has been trained: leave out --plot")
    files = {}
    if cells and not options.tables_only:
        check(steps, cells, [options.images], [])
        files = data_files([SETS[name] for name in there], dict(pair.partition("=")[::2] for pair in options.npz))
    scheme = study(Setup(files, str(resolve_device(options.device))))
    table = rows_of(scheme, cells, options) if cells else scheme.rows_of(scheme.read(options.csv), [])
    print(tables(table, options.sets, columns, options.cost))
    if options.plot is not None:
        panels = {title_of(name): table[table["set"] == name] for name in there}
        draw_costs(panels, list(steps), options.plot, COSTS[options.cost])


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all is well, 1 where cells failed, 2 where the request or the data are wrong."""
    return exit_code(run, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
