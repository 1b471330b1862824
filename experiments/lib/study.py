"""Studies: sets of parents x changes of the recipe, measured cell by cell and shown as tables.

A study declares its parents and its factors, each a few named steps; the smallest has one:

    TAPS = {"after": Fusion(), "before": Fusion({"taps": "before"})}
    STUDY = Study("taps", __doc__, families("digits"), {"taps": TAPS}, by_factor, draw_by_factor, columns=TEST)

A cell is a step with parents and a seed; the seed says which parents of a family, and draws the calibration images.
Equal steps of two factors are measured once. `Cells` keeps the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from depfuse.distributed.device import resolve_device
from depfuse.errors import RecipeError
from depfuse.recipe import Recipe
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import (
    check_counts,
    check_plot,
    common_options,
    exit_code,
    given_files,
    measured,
    numbers,
    say,
)
from experiments.lib.data_files import files_of
from experiments.lib.material import data_files
from experiments.lib.measure import ALWAYS, Setup, measure
from experiments.lib.parents.families import Family
from experiments.lib.parents.sets import ZOO
from experiments.lib.parents.trained import FOLDER, train_missing
from experiments.lib.places import MEASUREMENTS
from experiments.lib.processes import cores
from experiments.lib.steps import Fusion, Step

KEYS = ("set", "settings", "seed", "images", "test_limit")
Factors = Mapping[str, Mapping[str, Step]]
Chosen = dict[str, dict[str, Step]]


@dataclass(frozen=True)
class Study:
    """Parents and factors, and what is measured and shown.

    Attributes
    ----------
    name
        Of its module, its rows and its page.
    described
        Its module's docstring.
    parents
        Name -> family; all are measured where nothing else is said.
    factors
        Factor -> name of a step -> step.
    show
        (study, rows, the factors that were chosen) -> Markdown.
    draw
        (study, rows, the factors that were chosen, file): the same as a picture.
    measures
        What is measured besides `ALWAYS`.
    columns
        Columns of the tables with their headings, for `show`.
    """

    name: str
    described: str | None
    parents: Mapping[str, Family]
    factors: Factors
    show: Callable[[Study, pd.DataFrame, Chosen], str]
    draw: Callable[[Study, pd.DataFrame, Chosen, Path], None]
    measures: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def csv(self) -> Path:
        """Where its rows are kept."""
        return MEASUREMENTS / f"{self.name}.csv"

    @property
    def steps(self) -> dict[str, Step]:
        """`FACTOR: NAME` -> step, of all factors."""
        return {f"{factor}: {name}": step for factor, of in self.factors.items() for name, step in of.items()}

    def cells(self, setup: Setup) -> Cells:
        """How its rows are measured and kept."""
        return Cells(KEYS, setup.values, partial(measure, setup), ("step", "note"), ("set", "step", "seed", "images"))

    def setup(self, options: argparse.Namespace, files: Mapping[str, str]) -> Setup:
        """What is measured with, by the options."""
        steps = {step.described: step for step in self.steps.values()}
        device = str(resolve_device(options.device))
        return Setup(self.parents, steps, (*ALWAYS, *self.measures), files, options.parents, device)

    def parser(self) -> argparse.ArgumentParser:
        """The options."""
        options = common_options(self.described, self.csv)
        options.add_argument("--sets", nargs="+", metavar="NAME", default=[], help=", ".join(self.parents))
        options.add_argument("--steps", nargs="+", metavar="PATTERN", default=[], help="like 'FACTOR: NAME' or 'NAME*'")
        options.add_argument("--seeds", metavar="N,...", help="of parents and calibration images; as declared")
        options.add_argument("--images", metavar="N,...", help="numbers of calibration images; as declared")
        for option, of in (("--distil", "that train"), ("--by-group", "with a matching chosen for each group")):
            if any(step.long == option for step in self.steps.values()):
                options.add_argument(option, action="store_true", help=f"also steps {of}, which takes minutes")
        options.add_argument(
            "--parents", type=Path, default=FOLDER, metavar="FOLDER", help="where trained ones are kept"
        )
        options.add_argument("--npz", action="append", default=[], metavar="DATA=FILE")
        options.add_argument("--device", default="cpu")
        options.add_argument("--limit-test", type=int, default=0, metavar="N", help="only N of the images, for tests")
        return options

    def run(self, options: argparse.Namespace) -> None:
        """Measure and show what was asked for."""
        if options.list:
            print("\n".join(["Sets:", *(f"  {n}" for n in self.parents), "Steps:", *(f"  {n}" for n in self.steps)]))
            return
        check_plot(options.plot)
        check_counts(options, limit_test=0)
        chosen = chosen_steps(self, options)
        names = options.sets or [name for name, family in self.parents.items() if not _left_open(family, options)]
        if unknown := [name for name in names if name not in self.parents]:
            raise RecipeError(f"there is no set of parents {unknown[0]!r}: choose from {', '.join(self.parents)}")
        cells = cells_of(self, names, chosen, options)
        if not options.tables_only:
            check(self, cells, chosen, options)
        files = {} if options.tables_only else self._prepared(cells, options)
        scheme = self.cells(self.setup(options, files))
        rows = self.stored(options, names, chosen) if options.tables_only else measured(scheme, cells, options)
        chosen = _with_rows(chosen, rows)
        print(self.show(self, rows, chosen))
        if options.plot is not None:
            self.draw(self, rows, chosen, options.plot)

    def stored(self, options: argparse.Namespace, names: Sequence[str], chosen: Chosen) -> pd.DataFrame:
        """Select the stored rows of some parents and steps, of all seeds and images where none are asked for."""
        if not options.csv.exists():
            raise RecipeError(f"there is no file {options.csv} to make tables of: leave out --tables-only")
        table = self.cells(self.setup(options, {})).read(options.csv)
        wanted = {
            "set": set(names),
            "settings": {step.described for steps in chosen.values() for step in steps.values()},
            "test_limit": {str(options.limit_test)},
        }
        for option, key in (("seeds", "seed"), ("images", "images")):
            if getattr(options, option) is not None:
                wanted[key] = set(getattr(options, option).split(","))
        if "images" in wanted:  # steps that see none, or as many as they say
            wanted["images"] |= {"0", *(str(step.count) for steps in chosen.values() for step in steps.values())}
        rows = table[table[list(wanted)].isin(wanted).all(axis=1)]
        if rows.empty:
            raise RecipeError(
                f"{options.csv} has no row of these sets and steps: leave out --tables-only to measure them"
            )
        return rows

    def page(self, csv: Path) -> str:
        """Make the tables of all stored rows."""
        options = self.parser().parse_args(["--tables-only", "--csv", str(csv)])
        chosen = chosen_steps(self, options)
        rows = self.stored(options, list(self.parents), chosen)
        return self.show(self, rows, _with_rows(chosen, rows))

    def _prepared(self, cells: Sequence[Cell], options: argparse.Namespace) -> dict[str, str]:
        """Train the parents that are not there yet; where the data of all cells lie."""
        steps = {step.described: step for step in self.steps.values()}
        given, processes = given_files(options.npz), options.processes or 1
        threads = options.threads or max(1, cores() // processes)
        wanted = [(self.parents[cell["set"]], steps[cell["settings"]], cell["seed"]) for cell in cells]
        sets = [
            (family.real, family.parents(seed, step.parents, options.parents, step.training))
            for family, step, seed in wanted
        ]
        files = data_files([parents for real, parents in sets if real], given)  # before any training
        files |= files_of([parents.data for real, parents in sets if not real], given)
        files |= files_of([step.foreign for _, step, _ in wanted if isinstance(step, Fusion) and step.foreign], given)
        own = [
            (step.training or family.training, seed, step.parents) for family, step, seed in wanted if not family.real
        ]
        device = resolve_device(options.device)
        train_missing(own, options.parents, files, device=device, processes=processes, threads=threads, say=say)
        return files

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """0 where all is well, 1 where cells failed, 2 where the request or the data are wrong."""
        return exit_code(self.run, self.parser().parse_args(arguments))


def _with_rows(chosen: Chosen, rows: pd.DataFrame) -> Chosen:
    """Leave out steps that take minutes and of which there is no row."""
    there = set(rows["settings"])
    left = {
        factor: {name: step for name, step in steps.items() if not step.long or step.described in there}
        for factor, steps in chosen.items()
    }
    return {factor: steps for factor, steps in left.items() if steps}


def _left_open(family: Family, options: argparse.Namespace) -> bool:
    """Whether parents are not there that are trained only where asked for: of the zoo, or on a GPU."""
    seeds = family.seeds if options.seeds is None else numbers("--seeds", options.seeds, 0)
    on_gpu = options.tables_only or resolve_device(options.device).type != "cpu"
    if family.real:
        parents = family.parents(0, 2, FOLDER)
        return parents.kind == ZOO and bool(parents.lacks)
    return family.gpu and not on_gpu and any(family.parents(seed, 2, options.parents).lacks for seed in seeds)


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits `FACTOR: NAME`, or the name alone."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition(": ")[2], pattern)


def chosen_steps(study: Study, options: argparse.Namespace) -> Chosen:
    """The steps that were asked for, by factor.

    Raises
    ------
    RecipeError
        A pattern fits no step, or only such as take minutes and were not asked for.
    """

    def asked(step: Step) -> bool:
        return not step.long or getattr(options, step.long[2:].replace("-", "_")) or options.tables_only

    for pattern in options.steps:
        own = [step for name, step in study.steps.items() if fits(name, pattern)]
        if not own:
            raise RecipeError(f"there is no step {pattern!r}: --list names all")
        if not any(asked(step) for step in own):
            raise RecipeError(f"step {pattern!r} takes long: ask for it with {own[0].long}")
    chosen: Chosen = {}
    for factor, steps in study.factors.items():
        for name, step in steps.items():
            wanted = not options.steps or any(fits(f"{factor}: {name}", pattern) for pattern in options.steps)
            if wanted and asked(step):
                chosen.setdefault(factor, {})[name] = step
    lacking = {name: step.lacks() for steps in chosen.values() for name, step in steps.items() if step.lacks()}
    if lacking:
        named = ", ".join(f"{name!r} ({setting})" for name, setting in lacking.items())
        say(f"left out, since this version of depfuse has no such setting: {named}")
    return {
        factor: own
        for factor, steps in chosen.items()
        if (own := {name: step for name, step in steps.items() if name not in lacking})
    }


def cells_of(study: Study, names: Sequence[str], chosen: Chosen, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells, parents by parents, each once; a step that sees no images has one for each set of parents."""
    seeds = None if options.seeds is None else numbers("--seeds", options.seeds, 0)
    counts = None if options.images is None else numbers("--images", options.images, 2)
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    named: dict[str, tuple[str, Step]] = {}
    for own in chosen.values():
        for name, step in own.items():
            named.setdefault(step.described, (name, step))
    # Steps with other parents last: what has been read is used for all steps that share it.
    steps = sorted(named.values(), key=lambda one: (one[1].parents, one[1].training is not None))
    for of in names:
        family = study.parents[of]
        for seed in family.seeds if seeds is None else seeds:
            if family.real and not family.fixed and seed >= len(family.real):
                raise RecipeError(f"{of} has no seed {seed}: give 0 to {len(family.real) - 1}, or leave it out")
            for name, step in steps:
                if not step.suits(of, family.parents(seed, step.parents, options.parents, step.training)):
                    continue
                drawn = counts or [family.images] if step.count is None else [step.count]
                for images in drawn if step.images else [0]:
                    cell = {"set": of, "settings": step.described, "seed": seed, "images": images}
                    if not step.images and family.fixed:
                        cell["seed"] = 0
                    cell |= {"test_limit": options.limit_test, "step": name}
                    found[tuple(str(cell[key]) for key in KEYS)] = cell
    return list(found.values())


def check(study: Study, cells: Sequence[Cell], chosen: Chosen, options: argparse.Namespace) -> None:
    """Raise `RecipeError` where a pattern gives nothing to do, or the recipe of a step is contradictory."""
    there = {cell["settings"] for cell in cells}
    for pattern in options.steps or ["*"]:
        own = [
            step.described in there
            for factor, steps in chosen.items()
            for name, step in steps.items()
            if fits(f"{factor}: {name}", pattern)
        ]
        if own and not any(own):
            raise RecipeError(f"step {pattern!r} cannot be measured on any of the chosen parents: choose others")
    if not there:
        raise RecipeError("there is nothing to measure: choose other steps")
    for steps in chosen.values():
        for name, step in steps.items():
            for images in {cell["images"] for cell in cells if cell["settings"] == step.described}:
                try:
                    Recipe.create(**{"refit": "none", **step.asks}, calibration=images)
                except RecipeError as error:
                    raise RecipeError(f"step {name!r} with {images} images: {error}") from None
