"""`depfuse demo` needs nothing but what is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depfuse.cli import main
from depfuse.models.demo import PARENTS

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"


def test_its_networks_are_those_of_the_first_command() -> None:
    for own in PARENTS:
        assert own.read_bytes() == (CHECKPOINTS / own.name).read_bytes()


def test_it_keeps_nothing_unless_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    assert "Keep the child: of 500 test images it gets 9" in said
    assert "Nothing was written." in said
    assert list(tmp_path.iterdir()) == []


def test_its_folder_has_what_the_next_command_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "first"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command[:2] == ["depfuse", "fuse"]
    assert sorted(path.name for path in Path("first").iterdir()) == sorted(
        ["child.safetensors", "report.json", *(own.name for own in PARENTS)]
    )
    report = json.loads(Path("first/report.json").read_text())
    assert report["child"]["accuracy"] > 0.9
    assert main(["eval", "first/child.safetensors"]) == 0
    assert main([*command[1:], "--preset", "fast", "--quiet"]) == 0


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    assert main(["demo", "--out", str(path)]) == 2
    assert f"--out {path} is a file: give a folder" in capsys.readouterr().err
    assert path.read_text() == "kept"


def test_one_that_fails_leaves_no_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "first" / "child.safetensors"
    place.mkdir(parents=True)
    assert main(["demo", "--out", str(place.parent)]) == 2
    assert f"{place} cannot be written: it is a folder" in capsys.readouterr().err
    assert list(place.parent.iterdir()) == [place]
