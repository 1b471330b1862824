"""The published table and ours beside it: rows that stay open, the choice on held-out images, and resuming."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from depfuse.errors import RecipeError

OPEN = "open: train with `python -m experiments.lib.parents.train_zoo no-seed0 no-seed1`"


@pytest.fixture
def reproduce(monkeypatch) -> Iterator[ModuleType]:
    """The script with one more pair of full width, which nobody has trained."""
    module = importlib.import_module("experiments.studies.reproduce")
    parents = importlib.import_module("experiments.lib.parents.sets")
    pair = parents.ParentSet("ResNet18, nothing", parents.ZOO, "cifar10", ("no-seed0", "no-seed1"))
    monkeypatch.setitem(module.SETS, "open", pair)
    monkeypatch.setitem(module.PUBLISHED, "open", "92.16 / 91.80 of 94.99 / 94.76")
    yield module
    parents.material.cache_clear()


COLUMNS = ("parents", "naive, reset", "OT, activations", "best without refit")


def command(path: Path, *more: str) -> list[str]:
    small = ["--images", "100", "--limit-test", "50", "--threads", "1"]
    return ["--sets", "open", "digits", "--columns", *COLUMNS, *small, "--csv", str(path), *more]


def test_a_small_run_gives_the_tables_and_is_not_done_twice(reproduce, tmp_path: Path, capsys) -> None:
    path = tmp_path / "table.csv"
    assert reproduce.main(command(path)) == 0
    shown = capsys.readouterr()
    tables = [part.splitlines() for part in shown.out.split("\n\n")]
    assert [part[0] for part in tables[::2]] == [
        "**Per cent of the test images**", "**Per cent of held-out training images**", "**Seconds**",
    ]  # fmt: skip
    heads = " | ".join(COLUMNS)
    test, held_out, seconds = tables[1::2]
    assert test[0] == f"| networks | {heads} | published: activations / weights of parents |"
    assert test[2] == f"| ResNet18, nothing | {OPEN} |  |  |  | 92.16 / 91.80 of 94.99 / 94.76 |"
    assert test[3].startswith("| pair 0 | ")
    assert held_out[0] == f"| networks | {heads} |"
    assert seconds[0] == "| networks | naive, reset | OT, activations | best without refit |"
    assert [len(part) for part in (test, held_out, seconds)] == [4, 3, 3]
    rows = pd.read_csv(path)
    assert len(rows) == 7
    candidates = rows[rows["step"].isin(reproduce.CANDIDATES)].set_index("step")
    best = candidates["held_out_accuracy"].idxmax()
    chosen = f"{100 * candidates.loc[best, 'accuracy']:.2f} ({reproduce.CANDIDATES[best]})"
    assert test[3].split(" | ")[4] == chosen
    assert held_out[2].split(" | ")[4].startswith(f"{100 * candidates['held_out_accuracy'].max():.2f} (")
    assert seconds[2].endswith(f" | {candidates['seconds'].sum():.1f} |")
    before = path.read_bytes()
    plot = tmp_path / "plot.svg"
    for more in ([], ["--tables-only", "--plot", str(plot)]):
        assert reproduce.main(command(path, *more)) == 0
        assert path.read_bytes() == before
        again = capsys.readouterr()
        assert again.out == shown.out
        assert again.err == ""
    assert plot.read_text().startswith("<?xml")


def test_open_rows_need_neither_networks_nor_data(reproduce, tmp_path: Path, capsys) -> None:
    path = tmp_path / "table.csv"
    assert reproduce.main(["--sets", "open", "--csv", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count(OPEN) == 1
    assert out.count("\n") == 5
    assert not path.exists()


def row(step: str, test: float, held_out: float) -> dict[str, Any]:
    return {
        "set": "digits", "step": step, "accuracy": test, "held_out_accuracy": held_out, "seconds": 1.0,
        "cpu_seconds": 2.0, "refused": "",
    }  # fmt: skip


def test_the_best_is_chosen_on_held_out_images_and_among_all(reproduce) -> None:
    columns = reproduce.columns_of(["best without refit"], distil=False, by_group=False)
    figures = [
        ("matched, reset", 0.9, 0.5),
        ("matched softly, reset", 0.7, 0.8),
        ("matched as searched, repair", 0.8, 0.6),
    ]
    table = pd.DataFrame([row(*own) for own in figures])
    text = reproduce.tables(table, ["digits"], columns, "cpu")
    assert "| pair 0 | 70.00 (sinkhorn 0.1) |" in text
    assert "| pair 0 | 80.00 (sinkhorn 0.1) |" in text
    assert "| pair 0 | 6.0 |" in text
    assert "published" not in text
    assert "| pair 0 |  |" in reproduce.tables(table[:2], ["digits"], columns, "cpu")
    with_groups = reproduce.columns_of(["best without refit"], distil=False, by_group=True)
    assert "| pair 0 |  |" in reproduce.tables(table, ["digits"], with_groups, "cpu")


def test_what_takes_minutes_is_asked_for(reproduce) -> None:
    def columns(*headings: str, **asked: bool) -> Any:
        return reproduce.columns_of(headings, **{"distil": False, "by_group": False, **asked})

    assert list(columns()) == [name for name in reproduce.COLUMNS if name != "refit ridge, distil 3"]
    assert list(columns(distil=True)) == list(reproduce.COLUMNS)
    with pytest.raises(RecipeError, match="ask for it with --distil"):
        columns("refit ridge, distil 3")


def test_every_row_of_the_table_is_there(reproduce) -> None:
    assert set(reproduce.SHOWN) <= set(reproduce.SETS)
    assert all(step in reproduce.STEPS for steps in reproduce.COLUMNS.values() for step in steps)
    names = importlib.import_module("experiments.lib.parents.zoo").read_zoo()
    for name in reproduce.SHOWN:
        pair = reproduce.SETS[name]
        assert pair.architecture is not None or all(file in names for file in pair.files), name
        assert reproduce.title_of(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "nobody"], "there is no pair 'nobody': choose from cifar10-resnet18"),
        (["--sets", "digits", "--columns", "best"], "there is no column 'best': choose from parents"),
        (["--sets", "digits", "--images", "1"], "--images 1 must be at least 2"),
    ],
)
def test_a_wrong_request_gets_one_sentence(reproduce, tmp_path, capsys, arguments: list[str], message: str) -> None:
    assert reproduce.main([*arguments, "--csv", str(tmp_path / "absent.csv")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(message)
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
