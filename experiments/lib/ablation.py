"""Ablations: one factor of a fusion at a time, on several sets of parents, with confidence intervals over seeds.

A script declares its factors, each a few named settings of which the first is what the others are compared with; the
smallest has one:

    ABLATION = Ablation(
        "ablate_taps", __doc__, {"taps": {"after": Setting(), "before": Setting({"taps": "before"})}}
    )
    if __name__ == "__main__":
        sys.exit(main(ABLATION))

A cell is a setting with a family of parents and a seed: the seed says which parents of the family, and draws the
calibration images. Equal settings of two factors are measured once. `Study` keeps the rows.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.data import Loader, calibration_loader
from depfuse.errors import LimitWarning, RecipeError
from depfuse.evaluate import evaluate, evaluate_with_ensemble
from depfuse.renorm import renormalise
from experiments.lib.cells import Cell, Study, cores
from experiments.lib.command import check_counts, check_plot, common_options, exit_code, numbers, rows_of, say
from experiments.lib.parents.sets import SETS, Material, ParentSet, data_files, read_material
from experiments.lib.parents.trained import FOLDER, Training, thin_resnet, train_missing
from experiments.lib.tables import Estimate, draw_intervals, markdown

KEYS = ("set", "setting", "seed", "test_limit")
VALUES = (
    "accuracy", "held_out_accuracy", "parents_accuracy", "parents_held_out", "ensemble_accuracy", "ensemble_held_out",
    "seconds", "cpu_seconds",
)  # fmt: skip
SEEDS = 10
SHOWN = {"accuracy": "test", "held_out_accuracy": "held-out"}
SHOWN_BESIDE = {**SHOWN, "parents_accuracy": "parents", "ensemble_accuracy": "ensemble"}


@dataclass(frozen=True)
class Family:
    """Sets of parents that differ by their seed.

    Attributes
    ----------
    title
        Heading of its columns.
    images
        Number of calibration images, where a setting does not say it.
    training
        How its parents are trained; a setting may say otherwise.
    real
        Names of sets of other people's parents (parent_sets.py), one for each seed, instead.
    """

    title: str
    images: int
    training: Training = field(default_factory=Training)
    real: tuple[str, ...] = ()

    @property
    def seeds(self) -> range:
        """The seeds that are taken where nothing is said."""
        return range(len(self.real) or SEEDS)


FAMILIES = {
    "digits": Family("digits", 900),
    "digits-skewed": Family("digits, skewed", 900, Training(skewed=True)),
    "digits-deep": Family("digits, ResNet20", 900, Training(thin_resnet(blocks=3))),
    "resnet20": Family("real ResNet20", 2000, real=("resnet20-8-1-8-2", "resnet20-8-1-8-3", "resnet20-8-2-8-3")),
}


@dataclass(frozen=True)
class Setting:
    """One value of a factor.

    Attributes
    ----------
    recipe
        Settings of the recipe that are not its defaults.
    images
        Number of calibration images; all where there are fewer.
    match, reset
        How many of them the matching sees, and how many the reset of BatchNorm; all where not given.
    parents
        Number of them; other people's come in twos.
    training
        How they are trained, if not as the family's.
    more
        What only the script's own function reads.
    only
        The families that it is for; all where empty.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    match: int | None = None
    reset: int | None = None
    parents: int = 2
    training: Training | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()

    def serves(self, family: str) -> bool:
        """Whether it is for a family."""
        return not self.only or family in self.only

    @property
    def described(self) -> str:
        """The setting as text, which tells cells apart."""
        own, plain = asdict(self), asdict(Setting())
        return json.dumps({name: value for name, value in own.items() if value != plain[name] and name != "only"})


@dataclass(frozen=True, eq=False)
class Case:
    """Parents, a setting and a seed: all that a child is made from."""

    of: Material
    setting: Setting
    seed: int
    images: int

    @property
    def recipe(self) -> Recipe:
        """The recipe of the setting; what is compared is merged, and not refitted where the setting does not say so."""
        return Recipe.create(**{"refit": "none", **self.setting.recipe}, calibration=self.images, seed=self.seed)

    @property
    def calibration(self) -> Loader | None:
        """The images that the matching sees, None where there are none."""
        images = self.setting.match or self.images
        return self.drawn(images) if images else None

    def drawn(self, count: int) -> Loader:
        """So many calibration images; the first ones are the same for every number."""
        return calibration_loader(self.of.inputs.data, count, batch_size=Recipe().batch_size, seed=self.seed)

    @property
    def example(self) -> Tensor:
        """An input to trace with."""
        return self.of.inputs.data.example()


def fused(case: Case) -> nn.Module:
    """The child as `fuse` makes it, its BatchNorm reset from other images where the setting says so."""
    models, of, setting = case.of.inputs.models, case.of, case.setting
    child = fuse(models, case.recipe, case.calibration, example=case.example, groups=of.groups).child
    if setting.match or setting.reset:
        renormalise(child, "reset", case.drawn(setting.reset or case.images))
    return child


@dataclass(frozen=True)
class Ablation:
    """Factors with their settings, and what is done with each.

    Attributes
    ----------
    name
        Of the script; its rows are kept in runs/NAME.csv.
    described
        Its docstring.
    factors
        Factor -> name of a setting -> setting.
    families
        Names in `FAMILIES`.
    make
        Case -> child; a function of a module.
    shown
        Columns of the tables, with their headings.
    """

    name: str
    described: str | None
    factors: Mapping[str, Mapping[str, Setting]]
    families: tuple[str, ...] = ("digits", "digits-skewed", "resnet20")
    make: Callable[[Case], nn.Module] = fused
    shown: Mapping[str, str] = field(default_factory=lambda: SHOWN)

    @property
    def settings(self) -> dict[str, Setting]:
        """`FACTOR: NAME` -> setting, of all factors."""
        return {f"{factor}: {name}": one for factor, of in self.factors.items() for name, one in of.items()}


# --- one cell --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What every process must know: what is done, where the data and the trained parents lie."""

    ablation: Ablation
    files: Mapping[str, str]
    folder: Path


def parents_of(family: Family, setting: Setting, seed: int, folder: Path) -> ParentSet:
    """The parents of a cell."""
    if family.real:
        return SETS[family.real[seed]]
    return (setting.training or family.training).parents(seed, setting.parents, folder)


@lru_cache(maxsize=1)
def _material(parents: ParentSet, file: str) -> Material:
    return read_material(parents, file, torch.device("cpu"))


def measure(setup: Setup, cell: Cell) -> dict[str, Any]:
    """Make the child of one cell and judge it; figures of the parents are their means."""
    settings = {one.described: one for one in setup.ablation.settings.values()}
    setting, family = settings[cell["setting"]], FAMILIES[cell["set"]]
    seed, limit = int(cell["seed"]), int(cell["test_limit"])
    parents = parents_of(family, setting, seed, setup.folder)
    of = _material(parents, setup.files[parents.data])
    images = family.images if setting.images is None else setting.images
    case = Case(of, setting, seed, images)
    of.groups  # noqa: B018  found before the clock starts
    started, begun = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)
        child = setup.ablation.make(case)
    found = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - begun}
    held_out = of.held_out(images, seed, limit)
    found["accuracy"] = evaluate(child, of.test(limit)).accuracy
    if held_out is not None:
        found["held_out_accuracy"] = evaluate(child, held_out).accuracy
    test, kept = _of_parents(of, seed, limit)
    found |= {"parents_accuracy": test[0], "ensemble_accuracy": test[1]}
    return found | {"parents_held_out": kept[0], "ensemble_held_out": kept[1]}


@lru_cache(maxsize=1)
def _of_parents(of: Material, seed: int, limit: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean accuracy of the parents and that of their ensemble, on test and on held-out images."""
    found = []
    for loader in (of.test(limit), of.held_out(0, seed, limit)):
        assert loader is not None
        own, together = evaluate_with_ensemble(of.inputs.models, loader)
        found.append((sum(scores.accuracy for scores in own) / len(own), together.accuracy))
    return found[0], found[1]


# --- all cells -------------------------------------------------------------------------------------


def chosen_settings(ablation: Ablation, patterns: Sequence[str]) -> dict[str, Setting]:
    """The settings that fit one of the patterns, all where there is none; `RecipeError` where one fits nothing."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in ablation.settings):
            raise RecipeError(f"there is no setting {pattern!r}: --list names all")
    return {
        name: setting
        for name, setting in ablation.settings.items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def cells_of(
    sets: Sequence[str], settings: Sequence[Setting], seeds: Sequence[int] | None, limit: int
) -> list[dict[str, Any]]:
    """All cells, parents by parents, each once."""
    found = {}
    for name in sets:
        family = FAMILIES[name]
        own = [one for one in settings if one.serves(name)]
        # Settings with other parents last: what has been read is used for all settings that share it.
        own.sort(key=lambda one: (one.parents, one.training is not None))
        for seed in family.seeds if seeds is None else seeds:
            if family.real and seed >= len(family.real):
                raise RecipeError(f"{name} has no seed {seed}: give 0 to {len(family.real) - 1}, or leave it out")
            for one in own:
                cell = {"set": name, "setting": one.described, "seed": seed, "test_limit": limit}
                found[tuple(cell.values())] = cell
    return list(found.values())


# --- what is shown ---------------------------------------------------------------------------------


def estimated(
    table: pd.DataFrame, family: str, setting: Setting, value: str, against: Setting | None = None
) -> Estimate | None:
    """Mean over seeds in per cent, or that of the differences from another setting, seed by seed."""
    if not setting.serves(family):
        return None
    of = table[table["set"] == family].set_index("seed")
    values = of[of["setting"] == setting.described][value]
    if against is not None:
        values = values - of[of["setting"] == against.described][value]
    return Estimate.of((100.0 * values).tolist())


def tables(ablation: Ablation, table: pd.DataFrame, chosen: Mapping[str, Setting]) -> str:
    """One table per factor in Markdown, with the difference of each setting from the factor's first."""
    parts = []
    sets = [name for name in ablation.families if name in set(table["set"])]
    for factor, settings in ablation.factors.items():
        headers = [factor]
        first = {name: next((key for key, one in settings.items() if one.serves(name)), "") for name in sets}
        for name in sets:
            titled = [f"{FAMILIES[name].title}: {heading}" for heading in ablation.shown.values()]
            headers += [*titled, f"against {first[name]}"]
        rows = []
        for setting, one in settings.items():
            cells = []
            for name in sets:
                shown = [estimated(table, name, one, value) for value in ablation.shown]
                against = settings.get(first[name], one)
                differs = None if one == against else estimated(table, name, one, "accuracy", against)
                cells += ["" if found is None else found.text() for found in (*shown, differs)]
            if f"{factor}: {setting}" in chosen and any(cells):
                rows.append([setting, *cells, _seconds(table, one)])
        if rows:
            parts.append(markdown([*headers, "CPU seconds"], rows))
    refused = table[table["refused"] != ""].drop_duplicates(["set", "setting", "refused"])
    lines = [f"- {row['set']}, {row['setting']}: {row['refused']}" for row in refused.to_dict("records")]
    return "\n\n".join([*parts, *(["Not possible:\n\n" + "\n".join(lines)] if lines else [])])


def _seconds(table: pd.DataFrame, setting: Setting) -> str:
    """Mean seconds of the processor for each set, in the sets' order."""
    own = table[table["setting"] == setting.described].groupby("set", sort=False)["cpu_seconds"].mean()
    return " / ".join(f"{seconds:.1f}" for seconds in own)


def draw(ablation: Ablation, table: pd.DataFrame, chosen: Mapping[str, Setting], path: Path) -> None:
    """A panel for each factor: accuracy on the test images by setting, with the intervals as bars."""
    panels: dict[str, dict[str, dict[str, Estimate]]] = {}
    for factor, settings in ablation.factors.items():
        for name in ablation.families:
            for setting, one in settings.items():
                found = estimated(table, name, one, "accuracy")
                if found is not None and f"{factor}: {setting}" in chosen:
                    panels.setdefault(factor, {}).setdefault(FAMILIES[name].title, {})[setting] = found
    draw_intervals(panels, path, "accuracy (%)")


# --- the command -----------------------------------------------------------------------------------


def parser(ablation: Ablation) -> argparse.ArgumentParser:
    """The options."""
    options = common_options(ablation.described, Path("runs") / f"{ablation.name}.csv")
    options.add_argument("--sets", nargs="+", metavar="NAME", default=[], help=", ".join(ablation.families))
    options.add_argument("--settings", nargs="+", metavar="PATTERN", default=[], help="like 'FACTOR: NAME' or '*NAME'")
    options.add_argument("--seeds", metavar="N,...", help=f"0 to {SEEDS - 1}; of real parents, all pairs")
    options.add_argument("--parents", type=Path, default=FOLDER, metavar="FOLDER", help="where trained ones are kept")
    options.add_argument("--npz", action="append", default=[], metavar="DATA=FILE")
    options.add_argument(
        "--limit-test", type=int, default=0, metavar="N", help="only N of the test images, and of the held-out ones"
    )
    return options


def run(ablation: Ablation, options: argparse.Namespace) -> None:
    """Measure and show what was asked for."""
    if options.list:
        print("\n".join(["Sets:", *(f"  {name}" for name in ablation.families), "Settings:"]))
        print("\n".join(f"  {name}" for name in ablation.settings))
        return
    check_plot(options.plot)
    check_counts(options, limit_test=0)
    if unknown := [name for name in options.sets if name not in ablation.families]:
        raise RecipeError(f"there is no set of parents {unknown[0]!r}: choose from {', '.join(ablation.families)}")
    seeds = None if options.seeds is None else numbers("--seeds", options.seeds, 0)
    chosen = chosen_settings(ablation, options.settings)
    sets = options.sets or list(ablation.families)
    cells = cells_of(sets, list(chosen.values()), seeds, options.limit_test)
    if not cells:
        raise RecipeError("none of these settings is for these sets: choose others")
    files = {} if options.tables_only else _prepared(ablation, cells, options)
    setup = Setup(ablation, files, options.parents)
    scheme = Study(keys=KEYS, values=VALUES, measure=partial(measure, setup), unsaid=("test_limit",))
    table = rows_of(scheme, cells, options)
    print(tables(ablation, table, chosen))
    if options.plot is not None:
        draw(ablation, table, chosen, options.plot)


def _prepared(ablation: Ablation, cells: Sequence[Cell], options: argparse.Namespace) -> dict[str, str]:
    """Train the parents that are not there yet; where the data of all cells lie."""
    settings = {one.described: one for one in ablation.settings.values()}
    given = dict(pair.partition("=")[::2] for pair in options.npz)
    processes = options.processes or 1
    threads = options.threads or max(1, cores() // processes)
    wanted = [(FAMILIES[cell["set"]], settings[cell["setting"]], cell["seed"]) for cell in cells]
    files = data_files([parents_of(*of, options.parents) for of in wanted if of[0].real], given)  # before any training
    own = [(one.training or family.training, seed, one.parents) for family, one, seed in wanted if not family.real]
    train_missing(own, options.parents, processes=processes, threads=threads, say=say)
    return files | data_files([parents_of(*of, options.parents) for of in wanted if not of[0].real], given)


def main(ablation: Ablation) -> int:
    """0 where all is well, 1 where cells failed, 2 where the request or the data are wrong."""
    return exit_code(partial(run, ablation), parser(ablation).parse_args())
