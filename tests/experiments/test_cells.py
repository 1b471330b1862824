"""Cells are measured once, by several processes, into a file that is whole at any time and checked when it is read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from depfuse.errors import DataError, RecipeError
from experiments.lib.cells import Cells
from experiments.lib.processes import CellError

Measure = Callable[[Mapping[str, Any]], Mapping[str, Any]]
CELLS = [{"step": step, "seed": seed} for step in ("a", "b") for seed in (0, 1)]


def scheme(measure: Measure) -> Cells:
    return Cells(keys=("step", "seed"), values=("accuracy",), measure=measure, texts=("note",))


def run(path: Path, measure: Measure, cells: Any = CELLS, **options: Any) -> pd.DataFrame:
    table = scheme(measure).run(path, cells, threads=1, say=lambda _: None, **options)
    assert isinstance(table, pd.DataFrame)
    return table


def test_rows_that_are_there_are_not_measured_again(tmp_path: Path) -> None:
    measured = []

    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        measured.append(cell)
        return {"accuracy": 0.1 * len(measured), "note": 'a, "b"'}

    path = tmp_path / "folder" / "table.csv"
    table = run(path, measure, CELLS[:3])
    again = run(path, measure)
    assert measured == CELLS
    assert list(again["step"] + again["seed"]) == ["a0", "a1", "b0", "b1"]
    assert again["accuracy"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    pd.testing.assert_frame_equal(again[:3], table)
    pd.testing.assert_frame_equal(scheme(measure).read(path), again)
    assert set(again["note"]) == {'a, "b"'}
    assert set(again["threads"]) == {"1"}
    assert all(again["machine"])
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_cut_off_keeps_its_rows(tmp_path: Path, capsys, ends: type[BaseException]) -> None:
    path, begun = tmp_path / "table.csv", []

    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        begun.append(cell)
        if len(begun) == 3:
            raise ends("in the midst")
        return {"accuracy": 0.5}

    expected = CellError if ends is RuntimeError else ends
    with pytest.raises(expected) as caught:
        run(path, measure)
    kept = scheme(measure).read(path)
    if ends is RuntimeError:  # of one cell: the others go on
        assert "1 of 4 cells failed, the first was b, 0" in str(caught.value)
        assert "in the midst" in capsys.readouterr().err
        assert len(kept) == 3
    else:
        assert list(kept["step"] + kept["seed"]) == ["a0", "a1"]
    before = len(begun)
    assert len(run(path, measure)) == 4
    assert len(begun) == before + 4 - len(kept)


def test_what_is_not_possible_has_a_row_that_says_why(tmp_path: Path) -> None:
    path, possible = tmp_path / "table.csv", False

    def measure(cell: Mapping[str, Any]) -> Mapping[str, Any]:
        if not possible:
            raise RecipeError("it does not fit")
        return {"accuracy": 0.5}

    assert run(path, measure)["refused"].tolist() == ["it does not fit"] * 4
    possible = True
    assert run(path, measure)["accuracy"].isna().all()
    assert run(path, measure, retry=True)["accuracy"].tolist() == [0.5] * 4


HEAD = "step,seed,accuracy,note,machine,threads,refused\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "a,0,0.5,,cpu,1,\na,1,half,,cpu,1,\n", "row 3: accuracy 'half' is no number"),
        (HEAD + "a,0,0.5,,cpu,1,\na,1,0.", "row 3: it is cut off"),
        (HEAD + "a,,0.5,,cpu,1,\n", "row 2: seed is empty"),
        (HEAD + "a,0,,,cpu,1,\n", "row 2: it has neither figures nor a reason"),
        (HEAD + "a,0,0.5,,cpu,1,,,,\nb,0,0.5,,cpu,1,,,,,,\n", "cannot be read"),
        ("name,value\nx,1\n", "no column step"),
        ("", "no column step"),
    ],
)
def test_a_broken_file_is_named_and_left_alone(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"table.csv.*{message}"):
        run(path, lambda _: {"accuracy": 1.0})
    assert path.read_text() == text


SCRIPT = """
import os, sys
from pathlib import Path
from experiments.lib.cells import Cells

def measure(cell):
    return {"process": os.getpid(), "value": 2 * cell["number"]}

if __name__ == "__main__":
    cells = Cells(keys=("number",), values=("process", "value"), measure=measure)
    cells.run(Path(sys.argv[1]), [{"number": number} for number in range(8)], processes=2, threads=1)
"""


def test_several_processes_measure_and_one_writes(tmp_path: Path) -> None:
    script, path = tmp_path / "script.py", tmp_path / "table.csv"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, script, path], env=environment, check=True, capture_output=True, timeout=300)
    table = pd.read_csv(path).sort_values("number")
    assert table["value"].tolist() == [2 * number for number in range(8)]
    assert 1 <= table["process"].nunique() <= 2
    assert set(table["threads"]) == {1}
