"""The ablation of the steps of a fusion: its scheme of cells, its tables, and what it measures."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

from depfuse.data import Loader, load_data
from depfuse.errors import DataError, DepfuseError, RecipeError
from depfuse.evaluate import evaluate_with_ensemble
from depfuse.fusion.pipeline import fuse
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.models import build_network

Measure = Callable[[Mapping[str, Any]], Mapping[str, Any]]
CELLS = [{"step": step, "seed": seed} for step in ("a", "b") for seed in (0, 1)]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return importlib.import_module("experiments.lib.cells")


@pytest.fixture(scope="module")
def results() -> ModuleType:
    return importlib.import_module("experiments.lib.tables")


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return importlib.import_module("experiments.studies.ablate_child")


# --- the scheme ------------------------------------------------------------------------------------


def scheme(study: ModuleType, measure: Measure) -> Any:
    return study.Study(keys=("step", "seed"), values=("accuracy",), measure=measure, texts=("note",))


def run(study: ModuleType, path: Path, measure: Measure, cells: Any = CELLS, **options: Any) -> pd.DataFrame:
    table = scheme(study, measure).run(path, cells, threads=1, say=lambda _: None, **options)
    assert isinstance(table, pd.DataFrame)
    return table


def test_rows_that_are_there_are_not_measured_again(study, tmp_path: Path) -> None:
    measured = []

    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        measured.append(cell)
        return {"accuracy": 0.1 * len(measured), "note": 'a, "b"'}

    path = tmp_path / "folder" / "table.csv"
    table = run(study, path, measure, CELLS[:3])
    again = run(study, path, measure)
    assert measured == CELLS
    assert list(again["step"] + again["seed"]) == ["a0", "a1", "b0", "b1"]
    assert again["accuracy"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    pd.testing.assert_frame_equal(again[:3], table)
    pd.testing.assert_frame_equal(scheme(study, measure).read(path), again)
    assert set(again["note"]) == {'a, "b"'}
    assert set(again["threads"]) == {"1"}
    assert all(again["machine"])
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_cut_off_keeps_its_rows(study, tmp_path: Path, capsys, ends: type[BaseException]) -> None:
    path, begun = tmp_path / "table.csv", []

    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        begun.append(cell)
        if len(begun) == 3:
            raise ends("in the midst")
        return {"accuracy": 0.5}

    expected = study.StudyError if ends is RuntimeError else ends
    with pytest.raises(expected) as caught:
        run(study, path, measure)
    kept = scheme(study, measure).read(path)
    if ends is RuntimeError:  # of one cell: the others go on
        assert "1 of 4 cells failed, the first was b, 0" in str(caught.value)
        assert "in the midst" in capsys.readouterr().err
        assert len(kept) == 3
    else:
        assert list(kept["step"] + kept["seed"]) == ["a0", "a1"]
    before = len(begun)
    assert len(run(study, path, measure)) == 4
    assert len(begun) == before + 4 - len(kept)


def test_what_is_not_possible_has_a_row_that_says_why(study, tmp_path: Path) -> None:
    path, possible = tmp_path / "table.csv", False

    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        if not possible:
            raise RecipeError("it does not fit")
        return {"accuracy": 0.5}

    assert run(study, path, measure)["refused"].tolist() == ["it does not fit"] * 4
    possible = True
    assert run(study, path, measure)["accuracy"].isna().all()
    assert run(study, path, measure, retry=True)["accuracy"].tolist() == [0.5] * 4


HEAD = "step,seed,accuracy,note,machine,threads,refused\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "a,0,0.5,,cpu,1,\na,1,half,,cpu,1,\n", "row 3: accuracy 'half' is no number"),
        (HEAD + "a,0,0.5,,cpu,1,\na,1,0.", "row 3: it is cut off"),
        (HEAD + "a,,0.5,,cpu,1,\n", "row 2: seed is empty"),
        (HEAD + "a,0,,,cpu,1,\n", "row 2: it has neither figures nor a reason"),
        (HEAD + "a,0,0.5,,cpu,1,,,,\nb,0,0.5,,cpu,1,,,,,,\n", "row 2: it is cut off"),
        ("name,value\nx,1\n", "no column step"),
        ("", "no column step"),
    ],
)
def test_a_broken_file_is_named_and_left_alone(study, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"table.csv.*{message}"):
        run(study, path, lambda _: {"accuracy": 1.0})
    assert path.read_text() == text


# --- tables and plots ------------------------------------------------------------------------------


def rows(**accuracies: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"set": name, "step": "ridge", "accuracy": value, "parameters": 1.0 + n, "seconds": 10.0 * (n + 1)}
            for name, values in accuracies.items()
            for n, value in enumerate(values)
        ]
    )


def test_means_and_intervals_are_those_computed_by_hand(results) -> None:
    # 0.60, 0.62, 0.64: standard deviation 0.02; Student's t for two degrees of freedom is 4.3027
    estimate = results.Estimate.of([0.60, 0.62, float("nan"), 0.64])
    assert estimate.mean == pytest.approx(0.62)
    assert estimate.interval == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert estimate.text(100) == "62.0 ± 5.0"
    assert results.Estimate.of([0.6]).text(100) == "60.0"
    assert results.Estimate.of([float("nan")]) is None
    assert results.Estimate.of([float("inf"), 1.0]).text() == "inf"


def test_a_table_has_sets_as_columns_and_their_mean(results) -> None:
    table = rows(x=[0.60, 0.62, 0.64], y=[0.8])
    lone = pd.DataFrame([{"set": "y", "step": "naive", "accuracy": 0.1, "parameters": 1.0, "seconds": 0.5}])
    found = results.cost_table(
        pd.concat([table, lone]), "accuracy", {"x": "first", "y": "second"}, ["naive", "ridge", "none"], scale=100
    )
    assert found.splitlines() == [
        "| step | first | second | mean | parameters | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
        "| naive |  | 10.0 |  | 1.00 | 0.5 |",
        "| ridge | 62.0 ± 5.0 | 80.0 | 71.0 | 1.50 | 15.0 |",
    ]


def test_a_plot_has_one_panel_per_table(results, tmp_path: Path) -> None:
    free = pd.DataFrame([{"set": "x", "step": "parent", "accuracy": 0.5, "parameters": 1.0, "seconds": 0.0}])
    panels = {name: pd.concat([rows(x=[0.6, 0.7]), free]) for name in ("a", "b")}
    results.draw_costs(panels, ["parent", "ridge", "none"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(results.plot_kind.__globals__["ReportError"], match=r"png, .pdf or .svg"):
        results.draw_costs(panels, [], tmp_path / "plot.txt")


# --- what is measured ------------------------------------------------------------------------------


def measured(ablation: ModuleType, step: str, *, images: int = 100, limit: int = 100, name: str = "digits") -> Any:
    assert ablation.STEPS[step].images or images == 0
    setup = ablation.Setup({"digits": "digits"}, "cpu")
    return ablation.measure(setup, {"set": name, "step": step, "seed": 0, "images": images, "test_limit": limit})


def test_a_child_of_so_many_times_the_parameters(ablation) -> None:
    found = measured(ablation, "1.2 times the parameters, reset")
    assert found["parameters"] == pytest.approx(1.2, abs=0.02)
    assert found["note"].startswith("keep_worst 0.")
    of = ablation.material("digits", "digits", torch.device("cpu"))
    example = of.inputs.data.example()
    for share in (0.1, 0.5):
        recipe = ablation.Recipe(keep_worst=share, criterion="weights", renorm="none")
        child = fuse(of.inputs.models, recipe, groups=of.groups, example=example).child
        times = ablation.parameters(child) / ablation.parameters(of.inputs.models[0])
        again = ablation.keep_worst_for(times, of.inputs.models, of.groups, example)
        assert [round(again * g.size) for g in of.groups.free] == [round(share * g.size) for g in of.groups.free]
    with pytest.raises(RecipeError, match=r"1 to 3.* times the parameters, not 9 times"):
        ablation.keep_worst_for(9.0, of.inputs.models, of.groups, example)


def test_held_out_images_are_no_calibration_images(ablation) -> None:
    of = ablation.material("digits", "digits", torch.device("cpu"))
    few, many = of.held_out(100, 3, 0), of.held_out(900, 3, 0)
    assert few.count == 1297 // 4
    assert of.held_out(100, 3, 20).count == of.test(20).count == 20
    assert torch.equal(of.test(250).labels, of.test(0).labels[::2])
    assert torch.equal(few.images, many.images)
    assert of.held_out(1297, 3, 0) is None
    seen = {image.numpy().tobytes() for image in of.held_out(100, 4, 0).images}
    assert not {i.numpy().tobytes() for i in ablation.calibration_loader(of.inputs.data, 900, seed=4).images} & seen
    assert not {i.numpy().tobytes() for i in of.without_held_out(100, 4).train.images} & seen
    assert len(of.without_held_out(100, 4).train) == 1297 - 1297 // 4
    assert len(of.without_held_out(1297, 4).train) == 1297


def test_parents_of_different_labels_are_measured_over_all_labels(ablation, tmp_path: Path, monkeypatch) -> None:
    data, architecture = load_data("digits"), "digits_resnet(width=0.5, classes=5)"
    parents = []
    for number, classes in enumerate([(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]):
        torch.manual_seed(number)
        parents.append(build_network(architecture).eval())
        card = Card(architecture=architecture, data="digits", preprocessing=data.preprocessing, classes=classes)
        write_checkpoint(tmp_path / f"{number}.safetensors", parents[-1].state_dict(), card)
    sets = {"halves": ablation.SETS["own-halves"].__class__("halves", "k", "digits", ("0", "1"), differ=True)}
    for module in (ablation, importlib.import_module("experiments.lib.parents.sets")):
        monkeypatch.setattr(module, "SETS", sets)
    monkeypatch.setattr(importlib.import_module("experiments.lib.parents.sets"), "CHECKPOINTS", tmp_path)
    test = Loader(data.test, data.preprocessing, batch_size=500)
    ablation.material.cache_clear()
    of = ablation.material("halves", "digits", torch.device("cpu"))
    own, both = evaluate_with_ensemble(parents, test, sets=of.inputs.labels)
    assert measured(ablation, "parent 2", images=0, limit=0, name="halves")["accuracy"] == own[1].accuracy
    found = measured(ablation, "ensemble", images=0, limit=0, name="halves")
    assert (found["accuracy"], found["agreement"]) == (both.accuracy, 1.0)
    assert measured(ablation, "ensemble, one head without labels", name="halves")["agreement"] == 1.0
    for step in (
        "naive average, reset",
        "best parent, head refitted",
        "matched, reset",
        "1.5 times the parameters, reset",
    ):
        found = measured(ablation, step, name="halves")
        assert 0.0 <= found["accuracy"] <= 1.0, step
        assert found["parameters"] == pytest.approx(1.5 if "1.5" in step else 1.0, abs=0.1), step
    ablation.material.cache_clear()


# --- the command -----------------------------------------------------------------------------------


def command(ablation: ModuleType, *arguments: str) -> Any:
    return ablation.parser().parse_args(arguments)


SMALL = ("--sets", "digits", "--images", "100", "--limit-test", "50", "--steps", "naive*", "matched", "matched, reset")


def test_a_small_run_gives_rows_and_tables_and_is_not_done_twice(ablation, tmp_path: Path, capsys) -> None:
    path, plot = tmp_path / "table.csv", tmp_path / "plot.svg"
    options = (*SMALL, "--csv", str(path), "--threads", "1", "--seeds", "0,1")
    ablation.run(command(ablation, *options))
    shown = capsys.readouterr()
    table = pd.read_csv(path)
    assert len(table) == 1 + 3 * 2
    assert set(table["step"]) == {"naive average", "naive average, reset", "matched", "matched, reset"}
    assert ((50 * table["accuracy"]).round(6) % 1 == 0).all()
    assert (
        table[["accuracy", "loss", "held_out_accuracy", "agreement", "parameters", "seconds", "cpu_seconds"]]
        .notna()
        .all(axis=None)
    )
    assert "**Digits, different knowledge**, 100 calibration images, per cent of the test images" in shown.out
    assert " ± " in shown.out
    before = path.read_bytes()
    ablation.run(command(ablation, *options))
    assert path.read_bytes() == before
    assert capsys.readouterr().out == shown.out
    ablation.run(command(ablation, "--tables-only", "--limit-test", "50", "--csv", str(path), "--plot", str(plot)))
    assert capsys.readouterr().out == shown.out
    assert plot.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "nobody"], "no set of parents 'nobody': choose from resnet20-8-1-8-2"),
        (["--steps", "nothing*"], "no step 'nothing\\*': --list names all"),
        (["--steps", "*distilled"], "takes long: ask for it with --distil"),
        (["--steps", "ridge, matched by group"], "takes long: ask for it with --by-group"),
        (["--steps", "universe, reset"], "cannot be measured on any of the chosen parents"),
        (["--seeds", "0,0"], "--seeds 0,0: give whole numbers of at least 0, each once"),
        (["--images", "1"], "--images 1: give whole numbers of at least 2"),
        (["--images", "many"], "--images many"),
        (["--images", "400"], "with --images 400: recipe: labelled 500 is more than the 400"),
        (["--processes", "0"], "--processes 0 must be at least 1"),
        (["--tables-only", "--seeds", "1"], "--tables-only measures nothing: leave out --seeds"),
        (["--tables-only"], "no file .*absent.csv"),
        (["--plot", "plot.txt"], "must end in .png"),
        (["--npz", "cifar1000=x", "--steps", "matched"], "--npz cifar1000 is no data set"),
    ],
)
def test_a_wrong_request_gets_one_sentence(ablation, tmp_path: Path, arguments: list[str], message: str) -> None:
    sets = [] if "--sets" in arguments else ["--sets", "digits"]
    with pytest.raises(DepfuseError, match=message) as caught:
        ablation.run(command(ablation, *sets, "--csv", str(tmp_path / "absent.csv"), *arguments))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_steps_of_settings_that_this_version_lacks_are_left_out(ablation, tmp_path: Path, capsys, monkeypatch) -> None:
    lacking = ablation.Fusion({"no_such_setting": 1}), ablation.Fusion({"renorm": "no-such-method"})
    monkeypatch.setitem(ablation.STEPS, "matched x", lacking[0])
    monkeypatch.setitem(ablation.STEPS, "matched y", lacking[1])
    assert [step.lacks() for step in lacking] == ["no_such_setting", "renorm=no-such-method"]
    path = tmp_path / "table.csv"
    options = ("--sets", "digits", "--limit-test", "50", "--images", "100", "--csv", str(path), "--threads", "1")
    ablation.run(command(ablation, *options, "--steps", "matched", "matched [xy]", "parent 1"))
    assert set(pd.read_csv(path)["step"]) == {"matched", "parent 1"}
    assert (
        "no such setting: 'matched x' (no_such_setting), 'matched y' (renorm=no-such-method)" in capsys.readouterr().err
    )


def test_every_declared_step_is_known_to_the_recipe_or_left_out(ablation) -> None:
    for name, step in ablation.STEPS.items():
        if isinstance(step, ablation.Fusion):
            assert step.lacks() or ablation.Recipe.create(**step.settings), name
        else:
            assert step.what in ablation.BASELINES, name
    described = [(s.described, s.images) for s in ablation.STEPS.values()]
    assert len(set(described)) == len(described)


def test_the_exit_code_is_2_for_a_wrong_request_and_1_where_cells_failed(
    ablation, tmp_path: Path, capsys, monkeypatch
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("nonsense")
    monkeypatch.setattr(sys, "argv", ["ablate_child.py", "--tables-only", "--csv", str(path)])
    assert ablation.main() == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"{path} is no table of this study, it has no column set: name another file\n"
    path.unlink()
    monkeypatch.setattr(sys, "argv", ["ablate_child.py", *SMALL, "--csv", str(path), "--threads", "1"])
    monkeypatch.setattr(ablation, "_fused", lambda *_: 1 / 0)
    assert ablation.main() == 1
    assert capsys.readouterr().err.endswith("2 of 4 cells failed, the first was digits, matched, 0, 100: see above\n")
    assert set(pd.read_csv(path)["step"]) == {"naive average", "naive average, reset"}


SCRIPT = """
import os, sys
from pathlib import Path
from experiments.lib.cells import Study

def measure(cell):
    return {"process": os.getpid(), "value": 2 * cell["number"]}

if __name__ == "__main__":
    study = Study(keys=("number",), values=("process", "value"), measure=measure)
    study.run(Path(sys.argv[1]), [{"number": number} for number in range(8)], processes=2, threads=1)
"""


def test_several_processes_measure_and_one_writes(study, tmp_path: Path) -> None:
    script, path = tmp_path / "script.py", tmp_path / "table.csv"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, script, path], env=environment, check=True, capture_output=True, timeout=300)
    table = pd.read_csv(path).sort_values("number")
    assert table["value"].tolist() == [2 * number for number in range(8)]
    assert 1 <= table["process"].nunique() <= 2
    assert set(table["threads"]) == {1}


@pytest.mark.slow
def test_several_processes_measure_the_same_as_one(tmp_path: Path) -> None:
    tables = []
    for processes in ("1", "2"):
        path = tmp_path / f"{processes}.csv"
        options = [*SMALL, "--csv", str(path), "--processes", processes, "--threads", "1"]
        command = [sys.executable, "-m", "experiments.studies.ablate_child", *options]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        tables.append(pd.read_csv(path).set_index("step")[["accuracy", "loss", "agreement"]].sort_index())
    pd.testing.assert_frame_equal(*tables)
