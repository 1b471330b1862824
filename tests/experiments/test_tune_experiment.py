"""The measurements of searches: each is made once, the best recipe is tried on other pairs, and figures are right."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from experiments.benchmarks import throughput
from experiments.studies import tune as script


def test_the_best_recipe_is_tried_on_other_pairs_and_nothing_is_measured_twice(tmp_path: Path, capsys) -> None:
    words = ["--target", "digits", "--trials", "2", "--limit-test", "100", "--threads", str(torch.get_num_threads())]
    words += ["--out", str(tmp_path / "search"), "--csv", str(tmp_path / "table.csv")]
    assert script.main(words) == 0
    first = capsys.readouterr()
    table = pd.read_csv(tmp_path / "table.csv")
    assert set(table["set"]) == {"digits", "digits-skewed-1", "digits-skewed-2"}
    lines = [line.split(" | ") for line in first.out.splitlines() if line.startswith(("| (default", "| trial "))]
    assert [line[0].split()[1] for line in lines] == ["(default", "trial"] * 2  # on test images and on held-out ones
    assert all(len(line) == 8 and all(line[1:4]) for line in lines)
    assert (table["accuracy"] > 0.2).all()
    assert all('"refit": "none"' in settings or '"refit"' not in settings for settings in table["settings"])
    assert set(table["images"]) == {900}
    assert first.err.count("digits") == len(table)
    trials = {path: path.read_bytes() for path in (tmp_path / "search").glob("trial-*.json")}
    assert script.main(words) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err == ""
    assert {path: path.read_bytes() for path in (tmp_path / "search").glob("trial-*.json")} == trials


def test_ratios_are_of_the_same_round() -> None:
    rates = {("independent", "0"): 2.0, ("shared", "0"): 1.0, ("independent", "1"): 8.0, ("shared", "1"): 6.0}
    rows = pd.DataFrame(
        [
            {"refit": "none", "objectives": "2", "way": way, "round": number, "trials_per_second": rate,
             "storage_share": 0.1 if way == "shared" else 0.5, "storage_seconds_per_trial": 0.02}
            for (way, number), rate in rates.items()
        ]
    )  # fmt: skip
    (line,) = throughput.table_of(rows).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["none", "2", "5.00", "3.50", "0.50, 0.75", "0.62", "10.0 %", "20"]


def test_nested_calls_of_a_storage_count_once() -> None:
    now = 0.0

    class Storage:
        def outer(self) -> None:
            self.inner()
            self.inner()

        def inner(self) -> None:
            nonlocal now
            now += 1.0

    watch = throughput.Stopwatch(lambda: now)
    watch.watch(Storage)
    Storage().outer()
    assert watch.seconds == 2.0
    Storage().inner()
    assert watch.seconds == 3.0


def test_what_cannot_be_measured_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.delenv("DEPFUSE_POSTGRESQL", raising=False)
    assert throughput.MEASUREMENT.main([]) == 2
    assert "run this by .ci/with-postgresql" in capsys.readouterr().err
    assert script.main(["--target", "magic"]) == 2
    assert "there is no target 'magic': choose from resnet20" in capsys.readouterr().err
