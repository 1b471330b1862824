"""The experiments that measure architectures: one name cannot stop the table, and the table is summed up rightly."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from math import nan
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from depfuse.data import Loader, load_data, select_share
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate
from depfuse.groups import find_groups, prove_groups
from depfuse.io.into_network import load_network
from experiments.benchmarks import end_to_end as measured
from experiments.benchmarks import peers
from experiments.lib.cells import Cell
from experiments.lib.own_process import apart, resident, whole
from experiments.lib.permuted_copy import RECIPE, recognise
from experiments.lib.processes import CellError
from experiments.proofs import coverage
from experiments.proofs.networks import torchvision_dense
from experiments.studies import distil_unseen


def test_all_of_torchvisions_classification_networks_are_named() -> None:
    cells = coverage.architectures(["torchvision"], [], [])
    names = [cell["name"] for cell in cells]
    assert len(names) >= 80
    assert {"resnet18", "swin_v2_b", "vit_h_14"} <= set(names)
    assert not any("rcnn" in name or "fcn" in name for name in names)
    chosen = coverage.architectures(["torchvision"], [], ["*:vgg11*"])
    assert [cell["name"] for cell in chosen] == ["vgg11", "vgg11_bn"]


def test_timms_families_hold_what_they_say() -> None:
    pytest.importorskip("timm")
    families = {cell["name"]: cell["family"] for cell in coverage.architectures(["timm"], [], [])}
    assert set(families.values()) == set(coverage.FAMILIES)
    assert len(families) > 400
    for name, family in {
        "resnet50": "resnet", "seresnext50_32x4d": "seresnet", "legacy_senet154": None,
        "tf_efficientnet_b0": "efficientnet",
        "vit_small_patch16_224": "vit", "vit_base_patch16_224": None, "swin_tiny_patch4_window7_224": "swin",
        "convnextv2_tiny": "convnext", "eca_nfnet_l0": "nfnet", "cs3darknet_m": "cspnet",
    }.items():  # fmt: skip
        assert families.get(name) == family, name


def test_networks_of_other_libraries_are_told_apart() -> None:
    cells = coverage.architectures(["torchvision", "timm"], ["torchvision"], ["*:*rcnn*", "*:raft*", "*:vgg11"])
    assert {(cell["library"], cell["name"]) for cell in cells} == {
        ("torchvision", "vgg11"),
        *(("torchvision_dense", name) for name in torchvision_dense.FLOW),
        *(("torchvision_dense", name) for name in torchvision_dense.DETECTION if "rcnn" in name),
    }


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(RecipeError, match=re.escape("spandrel's networks need spandrel")) as raised:
        coverage.architectures(["torchvision"], ["spandrel"], [])
    assert str(raised.value).endswith("pip install 'depfuse[coverage]'")


def test_a_permuted_copy_is_recognised() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    example = torch.randn(2, 4)
    groups = prove_groups(network, find_groups(network, example), example)
    found = recognise(network, groups, example)
    assert (found["recovered"], found["missed"]) == (1, "")
    assert found["change"] <= 1e-6
    found = recognise(network, groups, example, recipe=RECIPE.changed({"solver": "identity"}))
    assert (found["recovered"], found["missed"]) == (0, "0 2")
    assert found["change"] > 0.01


def test_summary_counts_and_names() -> None:
    good = {"status": "proved", "covered_share": 0.99, "find_seconds": 0.5, "pass_seconds": 0.2, "prove_seconds": 1}

    def row(name: str, refused: str = "", **fields: object) -> dict[str, object]:
        told = {"library": "torchvision", "family": "torchvision", "name": name, "refused": refused}
        return {**dict.fromkeys(coverage.VALUES, nan), **told, **fields}

    rows = [
        row("a", proof_error=1e-15, **good),
        row("b", proof_error=3e-14, **{**good, "covered_share": 0.94}),
        row("vit_b", proof_error=2e-15, **{**good, "covered_share": 0.94}),
        row("c", status="timeout", refused="while proving", find_seconds=9.0, pass_seconds=0.5),
        row("d", status="refused", refused="x.1 (Add in x.1 ties it)"),
        row("e", status="refused", refused="y (Add in y ties it); z (Add in z ties it)"),
    ]
    text = coverage.summary(pd.DataFrame(rows))
    assert "| torchvision | 3 of 6 | 3.0e-14 | 94.0 % | 0.5 s | 9.0 s |" in text
    assert "too low: 1\n\n- torchvision:b 94.0 % (at least 95 %)" in text
    assert "Beyond 1 s and ten passes: torchvision:c" in text
    assert "Not proved: 3" in text
    assert "- refused: Add ties it — torchvision:d, torchvision:e" in text
    assert "- timeout: while proving — torchvision:c" in text


def squeezing(cell: Cell) -> Iterator[dict[str, int]]:
    """Yield a figure, and then do what the cell says."""
    yield {"step": 1}
    if cell["does"] == "refuse":
        raise RecipeError("not so")
    if cell["does"] == "fail":
        raise ValueError("no such thing")
    if cell["does"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    held = b"" if cell["does"] != "take" else b"a" * 2**30
    time.sleep(0.0 if cell["does"] == "end" else 60.0)
    yield {"step": 2, "held": len(held)}


@pytest.mark.parametrize(
    ("does", "limits", "step", "ended", "why"),
    [
        ("end", {}, 2, "", None),
        ("refuse", {}, 1, "refused", "not so"),
        ("fail", {}, 1, "error", "raises ValueError at test_experiments.py:"),
        ("die", {}, 1, "memory", "ended with exit code -9"),
        ("wait", {"seconds": 0.5}, 1, "timeout", "unfinished after 0.5 s"),
        ("take", {"gibibytes": 0.5}, 1, "memory", "took more than"),
    ],
)
def test_what_is_measured_apart_ends_as_it_may(
    does: str, limits: dict[str, float], step: int, ended: str, why: str | None
) -> None:
    if "gibibytes" in limits:  # a fork begins with all that this process holds
        limits = {"gibibytes": limits["gibibytes"] + resident(os.getpid()) / 2**30}
    found = apart(squeezing, {"does": does}, fork=True, **limits)
    assert (found["step"], found["ended"]) == (step, ended)
    assert "refused" not in found if why is None else why in found["refused"]
    assert found["peak_mib"] > 0
    if ended:
        with pytest.raises(CellError, match=re.escape(found["refused"])):
            whole(found)
    else:
        assert whole(found) is found


@pytest.mark.slow
def test_one_name_that_takes_too_much_does_not_stop_the_table(tmp_path: Path, capsys) -> None:
    csv = tmp_path / "table.csv"
    cells = [{"library": "torchvision", "family": "torchvision", "name": f"squeezenet1_{n}"} for n in (0, 1)]

    def run(seconds: float, gibibytes: float, retry: bool = False) -> pd.DataFrame:
        limits = ["--seconds", str(seconds), "--memory", str(gibibytes), "--pixels", "64", "--processes", "1"]
        scheme = coverage.scheme(coverage.MEASUREMENT.parser().parse_args(limits))
        return scheme.run(csv, cells, threads=1, retry=retry)

    assert list(run(0.05, 100.0)["status"]) == ["timeout", "timeout"]
    assert list(run(600.0, 0.05, retry=True)["status"]) == ["memory", "memory"]
    rows = run(600.0, 100.0, retry=True)
    assert list(rows["status"]) == ["proved", "proved"]
    assert (rows["proof_error"] <= 1e-9).all()
    assert (rows["find_seconds"] > 0).all()
    before = csv.stat().st_mtime_ns
    run(600.0, 100.0)
    assert csv.stat().st_mtime_ns == before, "rows that are there are left alone"
    capsys.readouterr()
    assert coverage.MEASUREMENT.main(["--csv", str(csv), "--tables-only", "--library", "torchvision"]) == 0
    assert "| torchvision | 2 of 2 |" in capsys.readouterr().out


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
def test_distillations_are_judged_on_the_half_that_no_parent_saw(tmp_path: Path, capsys) -> None:
    words = ["--parent-epochs", "2", "--epochs", "1", "--calibration", "200", "--threads", "1", "--data", "digits"]
    words += ["--architecture", "digits_resnet(width=0.5)", "--folder", str(tmp_path)]
    printed = []
    for _ in range(2):  # the second time with the parents that are there
        assert distil_unseen.main(words) == 0
        printed.append(capsys.readouterr().out)
    rows = [line.split(" | ") for line in printed[0].strip("| \n").splitlines() if " | " in line][2:]
    names = ["parent 0", "parent 1", "ensemble", "child, refitted", "child, distilled", "better parent, distilled"]
    assert [name.strip("| ") for name, *_ in rows] == names
    assert printed[1] == printed[0][printed[0].index("| network |") :]
    parents = sorted(tmp_path.iterdir())
    assert [path.name.partition("-")[0] for path in parents] == ["parent0", "parent1"]
    half = select_share(load_data("digits"), 1, 2)
    parent = load_network(parents[0]).eval()
    accuracy = evaluate(parent, Loader(half.train, half.preprocessing, batch_size=500)).accuracy
    assert rows[0][1] == f"{100 * accuracy:.2f}"
    assert distil_unseen.main([*words, "--epochs", "0"]) == 2
    assert "--epochs 0 must be at least 1" in capsys.readouterr().err
