"""The experiments that measure architectures: one name cannot stop the table, and the table is summed up rightly."""

from __future__ import annotations

import csv
import subprocess
import sys
from math import nan
from pathlib import Path

import pytest
import torch
from torch import nn

from depfuse.data import Loader, load_data, select_share
from depfuse.evaluate import evaluate
from depfuse.io.loading import load_network
from experiments.benchmarks import end_to_end as measured
from experiments.benchmarks import peers
from experiments.proofs import coverage


def row(name: str, **fields: object) -> dict[str, object]:
    given = {"library": "torchvision", "family": "torchvision", "name": name, **fields}
    return {field: str(given.get(field, "")) for field in coverage.FIELDS}


def test_rows_are_read_back_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "table.csv"
    table = coverage.Table(path)
    table.add("torchvision:a", row("a", status="timeout"))
    table.add("torchvision:b", row("b", status="error", why='a "sentence", with commas;\nand lines'))
    table.add("torchvision:a", row("a", status="proved", groups=3))
    again = coverage.Table(path)
    assert again.rows == table.rows
    assert list(again.rows) == ["torchvision:a", "torchvision:b"]
    assert again.rows["torchvision:a"]["groups"] == "3"
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]


def test_rows_that_are_there_are_measured_only_when_wanted_again() -> None:
    old = row("a", status="timeout")
    assert coverage.wanted(None, None)
    assert not coverage.wanted(old, None)
    assert coverage.wanted(old, [])
    assert coverage.wanted(old, ["timeout", "memory"])
    assert not coverage.wanted(old, ["error"])


def test_all_of_torchvisions_classification_networks_are_named() -> None:
    names = coverage.architectures(["torchvision"], [], [])
    assert len(names) >= 80
    assert {"torchvision:resnet18", "torchvision:swin_v2_b", "torchvision:vit_h_14"} <= names.keys()
    assert not any("rcnn" in name or "fcn" in name for name in names)
    chosen = coverage.architectures(["torchvision"], [], ["*:vgg11*"])
    assert list(chosen) == ["torchvision:vgg11", "torchvision:vgg11_bn"]


def test_timms_families_hold_what_they_say() -> None:
    pytest.importorskip("timm")
    names = coverage.architectures(["timm"], [], [])
    families = {fields["family"] for fields in names.values()}
    assert families == set(coverage.FAMILIES)
    assert len(names) > 400
    for name, family in {
        "resnet50": "resnet", "seresnext50_32x4d": "seresnet", "legacy_senet154": None,
        "tf_efficientnet_b0": "efficientnet",
        "vit_small_patch16_224": "vit", "vit_base_patch16_224": None, "swin_tiny_patch4_window7_224": "swin",
        "convnextv2_tiny": "convnext", "eca_nfnet_l0": "nfnet", "cs3darknet_m": "cspnet",
    }.items():  # fmt: skip
        assert names.get(f"timm:{name}", {}).get("family") == family, name


def test_parameters_are_counted_without_memory() -> None:
    assert coverage.count_parameters("torchvision:resnet18") == ("torchvision:resnet18", 11689512)
    assert coverage.count_parameters("torchvision:no_such_network") == ("torchvision:no_such_network", None)


def test_summary_counts_and_names() -> None:
    good = {"status": "proved", "covered_share": 0.99, "find_seconds": 0.5, "pass_seconds": 0.2, "prove_seconds": 1}
    rows = [
        row("a", proof_error=1e-15, **good),
        row("b", proof_error=3e-14, **{**good, "covered_share": 0.94}),
        row("vit_b", proof_error=2e-15, **{**good, "covered_share": 0.94}),
        row("c", status="timeout", why="while proving", find_seconds=9.0, pass_seconds=0.5),
        row("d", status="refused", why="x.1 (Add in x.1 ties it)"),
        row("e", status="refused", why="y (Add in y ties it); z (Add in z ties it)"),
    ]
    text = coverage.summary(rows)
    assert "| torchvision | 3 of 6 | 3.0e-14 | 94.0 % | 0.5 s | 9.0 s |" in text
    assert "too low: 1\n\n- torchvision:b 94.0 % (at least 95 %)" in text
    assert "Beyond 1 s and ten passes: torchvision:c" in text
    assert "Not proved: 3" in text
    assert "- refused: Add ties it — torchvision:d, torchvision:e" in text
    assert "- timeout: while proving — torchvision:c" in text


def run_coverage(out: Path, *options: str) -> tuple[list[dict[str, str]], str]:
    command = [sys.executable, "-m", "experiments.proofs.coverage", "--csv", str(out), *options]
    command += ["--library", "torchvision"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    with out.open(newline="") as file:
        return list(csv.DictReader(file)), done.stdout


@pytest.mark.slow
def test_one_name_that_takes_too_much_does_not_stop_the_table(tmp_path: Path) -> None:
    out, names = tmp_path / "table.csv", ["--names", "torchvision:squeezenet1_*"]
    rows, _ = run_coverage(out, *names, "--seconds", "0.05")
    assert [row["status"] for row in rows] == ["timeout", "timeout"]
    rows, _ = run_coverage(out, *names, "--memory", "0.05", "--again", "timeout")
    assert [row["status"] for row in rows] == ["memory", "memory"]
    rows, text = run_coverage(out, *names, "--again", "memory")
    assert [row["status"] for row in rows] == ["proved", "proved"]
    assert all(float(row["proof_error"]) <= 1e-9 and float(row["find_seconds"]) > 0 for row in rows)
    assert "| torchvision | 2 of 2 |" in text
    before = out.stat().st_mtime_ns
    run_coverage(out, *names)
    assert out.stat().st_mtime_ns == before, "rows that are there are left alone"


def test_peers_measure_the_change_of_the_function() -> None:
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2))
    example = torch.randn(5, 4)
    assert peers.change(first, first, example) == 0
    assert peers.change(first, second, example) > 0.1


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small"])
def test_depfuse_keeps_the_function_where_peers_are_compared(name: str, capsys) -> None:
    found = peers.measure("depfuse", name)
    assert found["error"] <= peers.KEPT
    assert found["error_of_weights"] <= peers.KEPT
    assert found["moved"] > 0.95
    assert found["distance"] < 1.0
    assert found["seconds"] == pytest.approx(found["find"] + found["prove"] + found["match"])
    assert capsys.readouterr().err == ""


def test_cells_say_what_happened() -> None:
    assert peers.cells({"refused": "unfinished after 3 s"}) == ["unfinished after 3 s", "", "", ""]
    fields = {"moved": 0.5, "distance": 0.9, "seconds": 2.0, "refused": "", "accuracy_after": nan, "find": nan}
    assert peers.cells({"error": 0.5, "error_of_weights": 1e-7, **fields}) == [
        "kept (1e-07), with statistics **broken** (5e-01)", "50 %", "0.900", "2.0",
    ]  # fmt: skip
    assert peers.cells({"error": 0.0, "error_of_weights": 0.0, **fields, "moved": 0.0})[0] == "nothing permuted"


def test_a_fusion_end_to_end_is_measured_beside_its_forward_passes(capsys) -> None:
    few = ["--width", "0.0625", "--align", "4", "--reset", "3", "--test", "2", "--device", "cpu"]
    for most, code in ((1e9, 0), (0.0, 1)):
        assert measured.main([*few, "--most-times", str(most)]) == code
        printed = capsys.readouterr()
        rows = dict(line.strip("| ").split(" | ") for line in printed.out.splitlines() if line.startswith("| "))
        assert set(rows) == {
            "step", "---", "groups found", "groups proved", "matched and merged, 4 images", "BatchNorm reset, 3 images",
            "evaluated, 2 images", "all", "bare forward passes",
        }  # fmt: skip
        parts = [float(rows[name]) for name in rows if "images" in name or name.startswith("groups")]
        assert sum(parts) == pytest.approx(float(rows["all"]), abs=0.05)
        assert ("too slow" in printed.err) == (code == 1)
    assert measured.main(["--align", "1"]) == 2
    assert "--align 1 must be at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_distillations_are_judged_on_the_half_that_no_parent_saw(tmp_path: Path) -> None:
    few = ["--parent-epochs", "2", "--epochs", "1", "--calibration", "200", "--threads", "1"]
    command = [sys.executable, "-m", "experiments.studies.distil_unseen", "--data", "digits", *few]
    command += ["--architecture", "digits_resnet", "--folder", str(tmp_path)]
    printed = []
    for _ in range(2):  # the second time with the parents that are there
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    rows = [line.split(" | ") for line in printed[0].strip("| \n").splitlines()[2:]]
    names = ["parent 0", "parent 1", "ensemble", "child, refitted", "child, distilled", "better parent, distilled"]
    assert [name.strip("| ") for name, *_ in rows] == names
    assert printed[1] == printed[0]
    parents = sorted(tmp_path.iterdir())
    assert [path.name.partition("-")[0] for path in parents] == ["parent0", "parent1"]
    half = select_share(load_data("digits"), 1, 2)
    parent = load_network(parents[0]).eval()
    accuracy = evaluate(parent, Loader(half.train, half.preprocessing, batch_size=500)).accuracy
    assert rows[0][1] == f"{100 * accuracy:.2f}"
    failed = subprocess.run([*command, "--epochs", "0"], capture_output=True, text=True, timeout=300)
    assert failed.returncode == 2
    assert "--epochs 0 must be at least 1" in failed.stderr
