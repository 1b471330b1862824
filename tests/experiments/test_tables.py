"""Tables and pictures: means, intervals and differences are those computed by hand or by SciPy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from depfuse.errors import ReportError
from experiments.lib import plots, tables
from experiments.lib.layouts import estimated
from experiments.lib.steps import Fusion


def rows(**accuracies: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "set": name,
                "step": "ridge",
                "accuracy": value,
                "parameters": 1.0 + n,
                "seconds": 10.0 * (n + 1),
                "cpu_seconds": 5.0,
            }
            for name, values in accuracies.items()
            for n, value in enumerate(values)
        ]
    )


def test_means_and_intervals_are_those_computed_by_hand() -> None:
    # 0.60, 0.62, 0.64: standard deviation 0.02; Student's t for two degrees of freedom is 4.3027
    estimate = tables.Estimate.of([0.60, 0.62, float("nan"), 0.64])
    assert estimate.mean == pytest.approx(0.62)
    assert estimate.interval == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert estimate.text(100) == "62.0 ± 5.0"
    assert tables.Estimate.of([0.6]).text(100) == "60.0"
    assert tables.Estimate.of([float("nan")]) is None
    assert tables.Estimate.of([float("inf"), 1.0]).text() == "inf"


def test_a_table_has_sets_as_columns_and_their_mean() -> None:
    table = rows(x=[0.60, 0.62, 0.64], y=[0.8])
    lone = pd.DataFrame(
        [{"set": "y", "step": "naive", "accuracy": 0.1, "parameters": 1.0, "seconds": 0.5, "cpu_seconds": 0.4}]
    )
    found = tables.cost_table(
        pd.concat([table, lone]), "accuracy", {"x": "first", "y": "second"}, ["naive", "ridge", "none"], scale=100
    )
    assert found.splitlines() == [
        "| step | first | second | mean | parameters | seconds | CPU seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| naive |  | 10.0 |  | 1.00 | 0.5 | 0.4 |",
        "| ridge | 62.0 ± 5.0 | 80.0 | 71.0 | 1.50 | 15.0 | 5.0 |",
    ]


def test_a_plot_has_one_panel_per_table(tmp_path: Path) -> None:
    free = pd.DataFrame([{"set": "x", "step": "parent", "accuracy": 0.5, "parameters": 1.0, "seconds": 0.0}])
    panels = {name: pd.concat([rows(x=[0.6, 0.7]), free]) for name in ("a", "b")}
    plots.draw_costs(panels, ["parent", "ridge", "none"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ReportError, match=r"png, .pdf or .svg"):
        plots.draw_costs(panels, [], tmp_path / "plot.txt")


def test_intervals_are_scipys_and_differences_are_taken_seed_by_seed() -> None:
    first, second = Fusion(), Fusion({"taps": "both"})
    values = [0.80, 0.60, 0.70, 0.90], [0.83, 0.61, 0.74, math.nan]
    table = pd.DataFrame(
        [
            {"set": "digits", "settings": setting.described, "seed": str(seed), "accuracy": value}
            for setting, of in zip((first, second), values, strict=True)
            for seed, value in enumerate(of)
        ]
    )
    found = estimated(table, "digits", first, "accuracy")
    own = 100 * np.array(values[0])
    low, high = stats.t.interval(0.95, 3, loc=own.mean(), scale=stats.sem(own))
    assert found.mean == pytest.approx(own.mean())
    assert (found.mean - found.interval, found.mean + found.interval) == pytest.approx((low, high))
    differs = estimated(table, "digits", second, "accuracy", first)
    paired = stats.ttest_rel(values[1][:3], values[0][:3]).confidence_interval(0.95)
    assert differs.mean == pytest.approx(100 * (0.03 + 0.01 + 0.04) / 3)
    assert differs.interval == pytest.approx(100 * (paired.high - paired.low) / 2)
