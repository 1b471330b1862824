"""Studies: small runs from end to end are shown, drawn and not measured twice; wrong requests end with one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from depfuse.io.checkpoint import read_checkpoint
from depfuse.recipe import Recipe
from experiments.lib import study
from experiments.lib.baselines import BASELINES
from experiments.lib.layouts import by_factor, draw_by_factor
from experiments.lib.parents.families import Family, families, sets
from experiments.lib.parents.trained import Training
from experiments.lib.registry import files
from experiments.lib.steps import Baseline, Fusion
from experiments.lib.study import Study
from experiments.studies import ablate_child, ablate_matching

# Study -> options of a small run, and its number of cells.
SMALL = {
    "ablate_child": (["--sets", "digits", "--images", "100", "--steps", "naive*", "matched", "matched, reset"], 4),
    "ablate_groups": (["--sets", "digits", "--steps", "matched by activations: layers*", "*nothing"], 3),
    "ablate_matching": (["--sets", "digits", "--steps", "criterion: *", "taps*both"], 6),
    "ablate_calibration": (
        ["--sets", "digits", "--steps", "images: 2", "images: 0", "images to*: 10", "after*: none"], 5,
    ),
    "ablate_parents": (["--sets", "digits", "--steps", "parents: 3", "share*: 0"], 2),
    "ablate_training": (["--sets", "digits", "--steps", "width: 0.25", "learning rate: 0.4"], 2),
    "compare_recipes": (["--sets", "digits", "--images", "100", "--steps", "git-re-basin", "cca"], 2),
    "distances": (["--sets", "digits-shipped", "--images", "300", "--steps", "pearson*"], 4),
    "skewed_digits": (["--sets", "digits-shipped", "--steps", "naive*", "parent 1", "child, merged"], 3),
    "widths_digits": (["--sets", "digits-widths", "--steps", "to 1: naive*", "to 1: emd", "parent: 1"], 3),
}  # fmt: skip
LONG = ("ablate_matching", "ablate_calibration", "widths_digits")


def trained_for_a_moment(of: Study) -> Study:
    """Return a study whose parents are trained for one epoch only."""

    def shorter(training: Training) -> Training:
        return replace(training, settings={**training.settings, "epochs": 1})

    families = {name: replace(family, training=shorter(family.training)) for name, family in of.parents.items()}
    factors = {
        factor: {name: replace(s, training=shorter(s.training)) if s.training else s for name, s in steps.items()}
        for factor, steps in of.factors.items()
    }
    return replace(of, parents=families, factors=factors)


STUDIES: dict[str, Study] = {
    name: trained_for_a_moment(module.STUDY)
    for name, path in files().items()
    if path.parent.name == "studies" and hasattr(module := import_module(f"experiments.studies.{name}"), "STUDY")
}


@pytest.fixture(scope="module")
def parents(tmp_path_factory) -> Path:
    """A folder for parents."""
    return tmp_path_factory.mktemp("parents")


def small(csv: Path, folder: Path, *more: str) -> list[str]:
    return ["--csv", str(csv), "--parents", str(folder), "--limit-test", "50", "--threads", "1", *more]


# --- from end to end -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in SMALL])
def test_a_small_run_is_shown_drawn_and_not_measured_twice(name: str, parents, tmp_path: Path, capsys) -> None:
    (words, count), of = SMALL[name], STUDIES[name]
    csv, plot = tmp_path / "table.csv", tmp_path / "plot.svg"
    options = [*small(csv, parents), *words, "--seeds", "0"]
    assert of.main(options) == 0
    shown = capsys.readouterr().out
    table = pd.read_csv(csv)
    assert len(table) == count
    assert table["refused"].isna().all()
    assert table[["accuracy", "loss", "parameters", "seconds", "cpu_seconds", *of.measures]].notna().all(axis=None)
    assert ((50 * table["accuracy"]).round(6) % 1 == 0).all()
    for step in table["step"]:
        assert f"| {step} |" in shown
    before = csv.read_bytes()
    assert of.main(options) == 0
    assert capsys.readouterr() == (shown, "")  # a line for each parent and cell
    assert of.main([*options, "--tables-only", "--plot", str(plot)]) == 0
    assert capsys.readouterr().out == shown
    assert csv.read_bytes() == before
    assert plot.read_text().startswith("<?xml")


def test_soft_couplings_leave_less_of_the_second_parent_than_its_share(parents, tmp_path: Path) -> None:
    csv = tmp_path / "table.csv"
    words = ["--sets", "digits-shipped", "--images", "100", "--seeds", "0", "--steps", "pearson*"]
    assert STUDIES["distances"].main(small(csv, parents, *words)) == 0
    share = pd.read_csv(csv).set_index("step")["second_share"]
    assert share["pearson"] == pytest.approx(0.5)
    assert share["pearson, shares 0.6 : 0.4"] == pytest.approx(0.4)
    soft, compensated = share["pearson, sinkhorn 0.1"], share["pearson, sinkhorn 0.1, shares 0.42 : 0.58"]
    assert 0.35 < soft < 0.45
    assert compensated / (1 - compensated) == pytest.approx(soft / (1 - soft) * 0.58 / 0.42)


def test_seeds_give_intervals_and_differences(parents, tmp_path: Path, capsys) -> None:
    words = ["--sets", "digits", "--steps", "share*: 0.5", "share*: 0", "--seeds", "0,1"]
    assert STUDIES["ablate_parents"].main(small(tmp_path / "table.csv", parents, *words)) == 0
    shown = capsys.readouterr().out
    first, second = shown.splitlines()[2:4]
    assert first.startswith("| 0.5 | ")
    assert first.count(" ± ") == 4
    assert second.startswith("| 0 | ")
    assert second.count(" ± ") == 5  # the difference from 0.5, too


def test_parents_are_trained_once_and_keep_their_card(parents, tmp_path: Path, capsys) -> None:
    words, of = ["--sets", "digits", "--steps", "parents: 3", "--seeds", "0"], STUDIES["ablate_parents"]
    assert of.main(small(tmp_path / "a.csv", parents, *words)) == 0
    training = of.parents["digits"].training
    paths = training.parents(0, 3, parents).paths
    card = read_checkpoint(paths[2]).card
    assert card is not None
    assert card.recipe is not None
    assert card.seeds == {"train": 3002}
    assert card.architecture == training.architectures[0]
    assert card.recipe["epochs"] == 1
    written = [path.stat().st_mtime_ns for path in paths]
    capsys.readouterr()
    assert of.main(small(tmp_path / "b.csv", parents, *words)) == 0
    assert "trained" not in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in paths] == written
    assert not set(Training(skewed=True).parents(0, 2, parents).paths) & set(paths)


def test_parents_of_unequal_widths_and_of_folds_are_trained_as_declared(parents) -> None:
    widths = ("digits_resnet(width=0.5)", "digits_resnet(width=0.25)")
    training = Training(widths, {"epochs": 1}, fold=True, first=100, apart=2)
    named = training.parents(6, 2, parents)
    assert named.fold == 1  # the seed, modulo five
    for number, path in enumerate(named.paths):
        training.train(6, number, path)
        card = read_checkpoint(path).card
        assert card is not None
        assert card.architecture == training.architectures[number]
        assert card.seeds == {"train": 112 + number}


@pytest.mark.slow
def test_several_processes_train_and_measure_the_same_as_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of processes that are begun
    tables = []
    for processes in ("1", "2"):
        csv, folder = tmp_path / f"{processes}.csv", tmp_path / processes
        words = ["--sets", "digits", "--steps", "*activations: layers*", "*nothing", "--seeds", "0"]
        assert STUDIES["ablate_groups"].main(small(csv, folder, *words, "--processes", processes)) == 0
        table = pd.read_csv(csv).sort_values(["seed", "settings"], ignore_index=True)
        tables.append(table[["seed", "settings", "accuracy", "loss", "held_out_accuracy"]])
    pd.testing.assert_frame_equal(*tables)


# --- declarations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_every_declared_step_is_known_to_the_recipe(name: str, capsys) -> None:
    of = STUDIES[name]
    for key, step in of.steps.items():
        assert not step.lacks(), key
        assert json.loads(step.described) is not None
        if isinstance(step, Fusion):
            assert Recipe.create(**{"refit": "none", **step.settings}), key
            assert set(step.only) <= set(of.parents), key
        else:
            assert step.what in BASELINES, key
    assert of.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {one}\n" in shown for one in (*of.parents, *of.steps))


def cells(steps: dict[str, dict[str, Any]], parents: dict[str, Family]) -> list[dict[str, Any]]:
    own = Study("x", "", parents, steps, by_factor, draw_by_factor)
    return study.cells_of(own, list(parents), steps, own.parser().parse_args([]))


def test_equal_steps_are_one_cell_and_seeds_are_those_of_the_family() -> None:
    found = cells({"a": {"b": Fusion()}, "c": {"d": Fusion()}}, families("digits", "resnet20"))
    assert [cell["seed"] for cell in found] == [*range(10), 0, 1, 2]
    assert {cell["step"] for cell in found} == {"b"}
    assert list(ablate_matching.STUDY.steps.values()).count(Fusion()) == 2  # activations, and the best distance


def test_steps_are_measured_on_the_parents_that_they_are_for() -> None:
    lone, parent = Fusion({"solver": "ipfp"}, only=("digits",)), Baseline("parent", {"number": 1}, 2, False)
    found = cells({"a": {"b": lone, "parent": parent}}, {**families("digits"), **sets("simplenet")})
    assert [(cell["step"], cell["images"]) for cell in found if cell["set"] == "simplenet"] == [("parent", 0)]
    assert {cell["images"] for cell in found if cell["step"] == "b"} == {900}


# --- wrong requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ablate_parents", ["--sets", "nobody"], "there is no set of parents 'nobody': choose from digits"),
        ("ablate_parents", ["--steps", "nothing*"], "there is no step 'nothing*': --list names all"),
        ("ablate_parents", ["--sets", "resnet20", "--steps", "parents: 3"], "step 'parents: 3' cannot be measured on"),
        ("ablate_parents", ["--sets", "resnet20", "--seeds", "3"], "resnet20 has no seed 3: give 0 to 2"),
        ("ablate_parents", ["--seeds", "0,0"], "--seeds 0,0: give whole numbers of at least 0, each once"),
        ("ablate_parents", ["--processes", "0"], "--processes 0 must be at least 1"),
        ("ablate_parents", ["--threads", "0"], "--threads 0 must be at least 1"),
        ("ablate_parents", ["--tables-only"], "there is no file"),
        ("ablate_parents", ["--plot", "plot.txt"], "must end in .png"),
        ("ablate_child", ["--steps", "*distilled"], "takes long: ask for it with --distil"),
        ("ablate_child", ["--steps", "ridge, matched by group"], "takes long: ask for it with --by-group"),
        ("ablate_child", ["--sets", "digits", "--steps", "universe, reset"], "cannot be measured on any of the chosen"),
        ("ablate_child", ["--images", "1"], "--images 1: give whole numbers of at least 2"),
        ("ablate_child", ["--images", "many"], "--images many"),
        ("ablate_child", ["--sets", "digits", "--images", "400"], "recipe: teach.labelled 500 is more than the 400"),
        ("ablate_child", ["--npz", "cifar1000=x", "--sets", "digits"], "--npz cifar1000 is no data set"),
    ],
)
def test_a_wrong_request_ends_with_one_sentence_and_2(
    name: str, parents, tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    assert STUDIES[name].main(small(tmp_path / "absent.csv", parents, *arguments)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_cells_that_fail_end_with_1_and_a_damaged_file_is_left_alone(parents, tmp_path: Path, capsys) -> None:
    csv = tmp_path / "table.csv"
    steps = {"naive average": ablate_child.STEPS["naive average"], "unknown": Baseline("of no such name")}
    of = replace(ablate_child.STUDY, factors={"step": steps})
    words = small(csv, parents, "--sets", "digits", "--images", "100")
    assert of.main(words) == 1
    assert capsys.readouterr().err.endswith("1 of 2 cells failed, the first was digits, unknown, 0, 100: see above\n")
    assert set(pd.read_csv(csv)["step"]) == {"naive average"}
    cut = csv.read_text()[:-9]
    csv.write_text(cut)
    assert of.main(words) == 2
    assert capsys.readouterr().err == f"{csv}, row 2: it is cut off: repair or delete the row\n"
    assert csv.read_text() == cut


def test_steps_of_settings_that_this_version_lacks_are_left_out(parents, tmp_path: Path, capsys) -> None:
    steps = {"parent 1": ablate_child.STEPS["parent 1"], "x": Fusion({"no_such": 1}), "y": Fusion({"renorm": "odd"})}
    own = ablate_child.STUDY
    lacking = Study("x", "", own.parents, {"step": steps}, own.show, own.draw, own.measures, own.columns)
    csv = tmp_path / "table.csv"
    assert lacking.main(small(csv, parents, "--sets", "digits")) == 0
    assert set(pd.read_csv(csv)["step"]) == {"parent 1"}
    assert "no such setting: 'x' (no_such), 'y' (renorm=odd)" in capsys.readouterr().err
