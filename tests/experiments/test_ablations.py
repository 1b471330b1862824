"""The ablations and the scaling study: small runs from end to end, layers taken one by one, intervals and exponents."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from depfuse import find_groups
from depfuse.errors import GroupError
from depfuse.groups import ChannelGroups, random_permutations
from depfuse.models import build_network

SCRIPTS = {
    "ablate_groups": (["matched by activations: layers*", "*nothing"], 3),
    "ablate_matching": (["criterion: *", "taps*both"], 6),
    "ablate_calibration": (["images: 2", "images: 0", "images to*: 10", "after*: none"], 5),
    "ablate_parents": (["parents: 3", "share*: 0"], 2),
    "ablate_training": (["width: 0.25", "learning rate: 0.4"], 2),
}
LONG = ("ablate_groups", "ablate_matching", "ablate_calibration")  # refits of every child


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    return {name: importlib.import_module(f"experiments.studies.{name}") for name in SCRIPTS}


@pytest.fixture(scope="module")
def ablation(scripts) -> ModuleType:
    return importlib.import_module("experiments.lib.ablation")


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    return importlib.import_module("experiments.benchmarks.scaling")


@pytest.fixture(scope="module")
def parents(scripts, tmp_path_factory) -> Iterator[Path]:
    """A folder for parents that are trained for a moment only."""
    trained = importlib.import_module("experiments.lib.parents.trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_same", "train_skewed"):

            def shortly(*given: Any, whole: Any = getattr(trained, name)) -> Any:
                return whole(*[{**one, "epochs": 1} if isinstance(one, dict) else one for one in given])

            patch.setattr(trained, name, shortly)
        yield tmp_path_factory.mktemp("parents")


def asked(ablation: ModuleType, script: ModuleType, *arguments: str) -> Any:
    return ablation.parser(script.ABLATION).parse_args(arguments)


def small(csv: Path, parents: Path, settings: list[str]) -> list[str]:
    fixed = ["--sets", "digits", "--limit-test", "50", "--threads", "1", "--settings", *settings]
    return [*fixed, "--csv", str(csv), "--parents", str(parents)]


# --- the ablations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in SCRIPTS])
def test_a_small_run_of_every_script_is_shown_drawn_and_not_measured_twice(
    name: str, scripts, ablation, parents, tmp_path: Path, capsys, monkeypatch
) -> None:
    (settings, count), script = SCRIPTS[name], scripts[name]
    csv, plot = tmp_path / "table.csv", tmp_path / "plot.svg"
    options = [*small(csv, parents, settings), "--seeds", "0,1"]
    ablation.run(script.ABLATION, asked(ablation, script, *options))
    shown = capsys.readouterr().out
    table = pd.read_csv(csv)
    assert len(table) == 2 * count
    assert table["refused"].isna().all()
    figures = [column for column in ablation.VALUES if column != "held_out_accuracy"]
    assert table[figures].notna().all(axis=None)
    assert table["held_out_accuracy"].between(0, 1).all()
    assert shown.count(" ± ") >= 2 * count
    assert shown.count("CPU seconds |") == len({pattern.partition(":")[0] for pattern in chosen(script, settings)})
    before = csv.read_bytes()
    monkeypatch.setattr(ablation, "read_material", lambda *_: pytest.fail("measured twice"))
    monkeypatch.setattr(ablation, "train_missing", lambda wanted, *_, **__: None)
    ablation.run(script.ABLATION, asked(ablation, script, *options))
    ablation.run(script.ABLATION, asked(ablation, script, *options, "--tables-only", "--plot", str(plot)))
    assert capsys.readouterr().out == 2 * shown
    assert csv.read_bytes() == before
    assert plot.read_text().startswith("<?xml")


def chosen(script: ModuleType, settings: list[str]) -> list[str]:
    return list(importlib.import_module("experiments.lib.ablation").chosen_settings(script.ABLATION, settings))


def test_parents_are_trained_once_and_keep_their_card(ablation, scripts, parents, tmp_path: Path, monkeypatch) -> None:
    options = small(tmp_path / "a.csv", parents, ["parents: 3"])
    script = scripts["ablate_parents"]
    ablation.run(script.ABLATION, asked(ablation, script, *options, "--seeds", "0"))
    training = ablation.FAMILIES["digits"].training
    paths = training.parents(0, 3, parents).paths
    card = sys.modules["depfuse.io.checkpoint"].read_checkpoint(paths[2]).card
    assert card.seeds == {"train": 3002}
    assert card.architecture == training.architecture
    assert card.recipe["epochs"] == 1
    monkeypatch.setattr(type(training), "train", lambda *_: pytest.fail("trained twice"))
    ablation.run(script.ABLATION, asked(ablation, script, *options[:-4], "--csv", str(tmp_path / "b.csv"),
                                        "--parents", str(parents), "--seeds", "0"))  # fmt: skip
    other = ablation.Training(skewed=True).parents(0, 2, parents).paths
    assert not set(other) & set(paths)


def test_equal_settings_are_one_cell_and_seeds_are_those_of_the_family(ablation, scripts) -> None:
    settings = list(scripts["ablate_matching"].ABLATION.settings.values())
    assert settings.count(ablation.Setting()) == 2  # activations, and the best distance
    cells = ablation.cells_of(["digits", "resnet20"], [ablation.Setting(), ablation.Setting()], None, 0)
    assert [cell["seed"] for cell in cells] == [*range(ablation.SEEDS), 0, 1, 2]
    lone = ablation.Setting({"solver": "ipfp"}, only=("digits",))
    assert {cell["set"] for cell in ablation.cells_of(["digits", "resnet20"], [lone], [0], 0)} == {"digits"}


def test_every_declared_setting_is_known_to_the_recipe(ablation, scripts) -> None:
    for script in scripts.values():
        for name, setting in script.ABLATION.settings.items():
            assert ablation.Recipe.create(**setting.recipe), name
            assert json.loads(setting.described) is not None
        assert set(script.ABLATION.families) <= set(ablation.FAMILIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "nobody"], "there is no set of parents 'nobody': choose from digits"),
        (["--settings", "nothing*"], "there is no setting 'nothing*': --list names all"),
        (["--sets", "resnet20", "--settings", "parents: 3"], "none of these settings is for these sets"),
        (["--sets", "resnet20", "--seeds", "3"], "resnet20 has no seed 3: give 0 to 2"),
        (["--seeds", "0,0"], "--seeds 0,0: give whole numbers of at least 0, each once"),
        (["--processes", "0"], "--processes 0 must be at least 1"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
        (["--tables-only"], "there is no file"),
        (["--plot", "plot.txt"], "must end in .png"),
    ],
)
def test_a_wrong_request_ends_with_one_sentence_and_2(
    ablation, scripts, parents, tmp_path: Path, capsys, monkeypatch, arguments: list[str], message: str
) -> None:
    fixed = ["--csv", str(tmp_path / "absent.csv"), "--parents", str(parents)]
    monkeypatch.setattr(sys, "argv", ["ablate_parents.py", *fixed, *arguments])
    assert ablation.main(scripts["ablate_parents"].ABLATION) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named_and_left_alone(
    ablation, scripts, parents, tmp_path: Path, capsys, monkeypatch
) -> None:
    csv = tmp_path / "table.csv"
    script = scripts["ablate_calibration"]
    options = [*small(csv, parents, ["images: 2"]), "--seeds", "0"]
    ablation.run(script.ABLATION, asked(ablation, script, *options))
    capsys.readouterr()
    cut = csv.read_text()[:-9]
    csv.write_text(cut)
    monkeypatch.setattr(sys, "argv", ["ablate_calibration.py", *options])
    assert ablation.main(script.ABLATION) == 2
    shown = capsys.readouterr()
    assert shown.err == f"{csv}, row 2: it is cut off: repair or delete the row\n"
    assert shown.out == ""
    assert csv.read_text() == cut


def test_lists_name_all_settings(ablation, scripts, capsys) -> None:
    for script in scripts.values():
        ablation.run(script.ABLATION, asked(ablation, script, "--list"))
        shown = capsys.readouterr().out
        assert all(f"  {name}\n" in shown for name in script.ABLATION.settings)


@pytest.mark.slow
def test_several_processes_train_and_measure_the_same_as_one(ablation, tmp_path: Path) -> None:
    tables = []
    for processes in ("1", "2"):
        csv, folder = tmp_path / f"{processes}.csv", tmp_path / processes
        options = [*small(csv, folder, ["*activations: layers*", "*nothing"]), "--seeds", "0", "--processes", processes]
        command = [sys.executable, "-m", "experiments.studies.ablate_groups", *options]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        table = pd.read_csv(csv).sort_values(["seed", "setting"], ignore_index=True)
        tables.append(table[["seed", "setting", "accuracy", "held_out_accuracy", "parents_accuracy"]])
    pd.testing.assert_frame_equal(*tables)


# --- intervals -------------------------------------------------------------------------------------


def test_intervals_are_scipys_and_differences_are_taken_seed_by_seed(ablation) -> None:
    first, second = ablation.Setting(), ablation.Setting({"taps": "both"})
    values = [0.80, 0.60, 0.70, 0.90], [0.83, 0.61, 0.74, math.nan]
    table = pd.DataFrame(
        [
            {"set": "digits", "setting": setting.described, "seed": str(seed), "accuracy": value}
            for setting, of in zip((first, second), values, strict=True)
            for seed, value in enumerate(of)
        ]
    )
    found = ablation.estimated(table, "digits", first, "accuracy")
    own = 100 * np.array(values[0])
    low, high = stats.t.interval(0.95, 3, loc=own.mean(), scale=stats.sem(own))
    assert found.mean == pytest.approx(own.mean())
    assert (found.mean - found.interval, found.mean + found.interval) == pytest.approx((low, high))
    differs = ablation.estimated(table, "digits", second, "accuracy", first)
    paired = stats.ttest_rel(values[1][:3], values[0][:3]).confidence_interval(0.95)
    assert differs.mean == pytest.approx(100 * (0.03 + 0.01 + 0.04) / 3)
    assert differs.interval == pytest.approx(100 * (paired.high - paired.low) / 2)


# --- layers one by one -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untied(scripts) -> ModuleType:
    return importlib.import_module("experiments.lib.untied")


def permuted(groups: ChannelGroups, network: nn.Module, orders: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = dict(network.state_dict())
    for group in groups.free:
        state = group.permute(state, orders[group.name])
    return state


def test_without_skip_connections_layers_are_the_groups(untied) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 16, 3),
    ).eval()  # fmt: skip
    groups = find_groups(network, torch.zeros(1, 1, 8, 8))
    apart = untied.untied(groups, network)
    assert [group.name for group in apart] == [group.name for group in groups.free]
    orders = random_permutations(groups, 0)
    for key, tensor in permuted(groups, network, orders).items():
        assert torch.equal(permuted(apart, network, orders)[key], tensor), key
    assert [len(group.taps) for group in apart] == [len(group.taps) for group in groups.free]


@pytest.mark.parametrize("architecture", ["digits_resnet", "cifar_resnet20(width=0.5)"])
def test_layers_of_one_stream_may_move_apart_and_the_function_is_lost(untied, architecture: str) -> None:
    network = build_network(architecture).eval()
    example = torch.rand(2, 1, 8, 8) if architecture == "digits_resnet" else torch.rand(2, 3, 32, 32)
    groups = find_groups(network, example[:1])
    apart = untied.untied(groups, network)
    producers = {slot.key.rpartition(".")[0] for g in groups.free for slot in g.slots if slot.role == "produces"}
    assert {group.name for group in apart} == producers
    assert len(apart) > groups.count
    # Moved as their stream is, they are the channel groups.
    tied = random_permutations(groups, 1)
    orders = {}
    for group in apart:
        order = torch.arange(group.size)
        for own in groups.free:
            for slot in own.slots:
                if slot.role == "produces" and slot.key == f"{group.name}.weight":
                    order[slot.index[:, 0]] = slot.index[tied[own.name], 0]
        orders[group.name] = order
    together, each = permuted(groups, network, tied), permuted(apart, network, orders)
    assert all(torch.equal(each[key], tensor) for key, tensor in together.items())
    before = network(example)
    network.load_state_dict(together)
    assert torch.allclose(network(example), before, atol=1e-5)
    network.load_state_dict(each | permuted(apart, network, random_permutations(apart, 2)))
    assert not torch.allclose(network(example), before, atol=1e-3)


def test_layers_are_watched_where_it_is_said(untied) -> None:
    network = build_network("digits_resnet").eval()
    groups = find_groups(network, torch.zeros(1, 1, 8, 8))
    own = {g.name: [(t.module, t.side) for t in g.taps] for g in untied.untied(groups, network)}
    ends = {g.name: [(t.module, t.side) for t in g.taps] for g in untied.untied(groups, network, streams=True)}
    assert own["layer1.conv2"] == [("layer1.bn2", "output")]
    assert ends["layer1.conv2"] == [("layer1.bn2", "output"), ("layer1", "output")]
    assert ends["conv1"] == [("bn1", "output"), ("layer1.conv1", "input")]
    assert own["layer2.shortcut.0"] == ends["layer2.shortcut.0"] == [("layer2.shortcut.1", "output")]
    assert [g.name for g in untied.only(groups, streams=True)] == ["conv1", "layer2.conv2"]
    assert [g.name for g in untied.only(groups, streams=False)] == ["layer1.conv1", "layer2.conv1"]


def test_blocks_cannot_be_taken_one_by_one(untied) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(GroupError, match="cannot be taken one by one"):
        untied.untied(find_groups(network, torch.zeros(1, 1, 4, 4)), network)


# --- scaling ---------------------------------------------------------------------------------------


def test_a_known_power_law_is_found(scaling) -> None:
    sizes = [1.0, 2.0, 4.0, 8.0]
    exact = scaling.PowerLaw.fit(sizes, [3.0 * size**2.5 for size in sizes])
    assert (exact.exponent, exact.constant, exact.error) == pytest.approx((2.5, 3.0, 0.0), abs=1e-6)
    assert exact.at(16.0) == pytest.approx(3.0 * 16**2.5)
    generator = np.random.default_rng(0)
    errors, missed = [], 0
    for _ in range(300):
        found = scaling.PowerLaw.fit(sizes * 3, [3.0 * s**2.5 * generator.lognormal(0, 0.2) for s in sizes * 3])
        errors.append(found.error)
        missed += abs(found.exponent - 2.5) > stats.t.ppf(0.975, 10) * found.error
    assert missed / 300 == pytest.approx(0.05, abs=0.04)
    assert np.mean(errors) == pytest.approx(0.2 / (np.log(sizes * 3).std() * 12**0.5), rel=0.1)
    assert math.isnan(scaling.PowerLaw.fit([1.0, 2.0], [1.0, 4.0]).error)
    assert scaling.PowerLaw.fit([1.0, 2.0], [1.0, 4.0]).text() == "2.00"


def test_work_is_what_a_hand_counts(scaling) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False)).eval()
    example = torch.zeros(1, 1, 8, 8)
    work = scaling.Work.of(network, find_groups(network, example), example)
    assert work.parameters == 36 + 72
    assert work.forward == 2 * (36 * 36 + 72 * 16)
    assert work.groups == (4.0,)
    assert work.covariance == 2 * 36 * 4**2  # the input of the second convolution
    assert work.products == 4**2
    wide = work.widened(2.0)
    assert (wide.covariance, wide.products, wide.groups) == (2 * 36 * 8**2, 8**2, (8.0,))
    rates = scaling.Rates(1e3, 1e2, scaling.PowerLaw(3.0, 0.0, 1e-3))
    assert rates.seconds(work, 10) == {
        "forward passes": pytest.approx(3 * 10 * work.forward / 1e3),
        "covariances": pytest.approx(10 * work.covariance / 1e2),
        "assignment": pytest.approx(0.064),
    }


def tiny_axes(scaling: ModuleType) -> dict[str, Any]:
    network = "digits_resnet(width={}, in_channels=3)"
    return {
        "width": {w: scaling._cell(network.format(w), images=100, side=8) for w in ("0.5", "1.0", "2.0")},
        "channels assigned": {n: scaling._cell(scaling.ASSIGNED, images=0, side=int(n)) for n in ("64", "128", "256")},
        "ResNet50, 224 pixels": {"50": scaling._cell(network.format(1.0), images=10, side=8)},
    }


def test_a_small_scaling_study_gives_exponents_and_estimates(scaling, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(scaling, "AXES", tiny_axes(scaling))
    monkeypatch.setattr(scaling, "CHECK", "torchvision:resnet18")
    monkeypatch.setattr(scaling, "measure", lambda cell: scaling.figures({**cell, "threads": 1}))
    csv, plot = tmp_path / "table.csv", tmp_path / "plot.svg"
    options = ["--csv", str(csv), "--threads", "1"]
    scaling.run(scaling.parser().parse_args(options))
    shown = capsys.readouterr().out
    table = pd.read_csv(csv)
    assert len(table) == 2 * 7
    assert (table["all"] > 0).all()
    corridors = table[table["network"] != scaling.ASSIGNED]
    assert (corridors[["groups", "matching", "merge", "renorm", "forward_flops", "covariance_flops"]] > 0).all(
        axis=None
    )
    assert "| width | groups | forward | matching | assignment | merge | renorm | all | MiB |" in shown
    assert shown.count("| exponent |") == 2
    monkeypatch.setattr(scaling, "measure", lambda _: pytest.fail("measured twice"))
    scaling.run(scaling.parser().parse_args([*options, "--plot", str(plot)]))
    assert capsys.readouterr().out == shown
    assert plot.read_text().startswith("<?xml")


def test_a_cell_is_measured_in_a_process_of_its_own(scaling) -> None:
    torch.set_num_threads(1)
    found = scaling.measure({**scaling._cell(scaling.ASSIGNED, images=0, side=64), "seed": 0})
    assert set(found) == {"assignment", "all", "all_clock", "memory"}
    assert found["assignment"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--axes", "height"], "there is no axis 'height': choose from width"),
        (["--processes", "0"], "--processes 0 must be at least 1"),
        (["--seeds", "x"], "--seeds x: give whole numbers"),
        (["--tables-only"], "there is no file"),
    ],
)
def test_a_wrong_request_to_the_scaling_study(
    scaling, tmp_path: Path, capsys, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--csv", str(tmp_path / "absent.csv"), *arguments])
    assert scaling.main() == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
