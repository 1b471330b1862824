"""The scaling study: exponents, operations and estimates are right, and every cell is a process of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from depfuse import find_groups
from experiments.benchmarks import scaling


def test_a_known_power_law_is_found() -> None:
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


def test_work_is_what_a_hand_counts() -> None:
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


def tiny_axes() -> dict[str, Any]:
    network = "digits_resnet(width={}, in_channels=3)"
    return {
        "width": {w: scaling._cell(network.format(w), images=100, side=8) for w in ("0.5", "1.0", "2.0")},
        "channels assigned": {n: scaling._cell(scaling.ASSIGNED, images=0, side=int(n)) for n in ("64", "128", "256")},
        "ResNet50, 224 pixels": {"50": scaling._cell(network.format(1.0), images=10, side=8)},
    }


def test_a_small_scaling_study_gives_exponents_and_estimates(tmp_path: Path, capsys) -> None:
    study = scaling.study_of(tiny_axes(), "torchvision:resnet18", lambda cell: next(scaling.figures(cell)))
    csv, plot = tmp_path / "table.csv", tmp_path / "plot.svg"
    options = ["--csv", str(csv), "--threads", "1"]
    assert study.main(options) == 0
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
    assert study.main([*options, "--plot", str(plot)]) == 0
    assert capsys.readouterr() == (shown, "")  # nothing is measured twice: a line for each cell
    assert plot.read_text().startswith("<?xml")


def test_a_cell_is_measured_in_a_process_of_its_own() -> None:
    torch.set_num_threads(1)
    found = scaling.measure({**scaling._cell(scaling.ASSIGNED, images=0, side=64), "seed": 0})
    assert {"assignment", "all", "all_clock", "memory"} <= set(found)
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
def test_a_wrong_request_to_the_scaling_study(tmp_path: Path, capsys, arguments: list[str], message: str) -> None:
    assert scaling.MEASUREMENT.main(["--csv", str(tmp_path / "absent.csv"), *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
