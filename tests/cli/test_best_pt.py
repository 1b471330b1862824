"""Two `best.pt` of different classes: inspected without their code, and fused with a class of the user's own."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from depfuse import load
from depfuse.cli import main

OWN = """
from torch import nn


class Mine(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.boxes, self.classes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x):
        x = self.norm(self.enter(x)).relu()
        return {"boxes": self.boxes(x), "classes": self.classes(x)}


def detector(classes=3):
    return Mine(classes)
"""


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files as trainers of the YOLO family write them: a network, pickled with a class that is nowhere now."""
    package = types.ModuleType("somebodys")
    kind = type("DetectionModel", (nn.Module,), {"__module__": "somebodys", "__qualname__": "DetectionModel"})
    package.DetectionModel = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys", package)
    scope: dict = {}
    exec(OWN, scope)
    for name, classes in (("a", 3), ("b", 2)):
        torch.manual_seed(classes)
        network = kind()
        for own, module in scope["Mine"](classes).half().named_children():
            network.add_module(own, module)
        network.names = {number: f"thing {number}" for number in range(classes)}
        content = {"epoch": -1, "model": network, "ema": None, "train_args": {"imgsz": 32}, "version": "8.1"}
        torch.save(content, tmp_path / f"{name}.pt")
    monkeypatch.delitem(sys.modules, "somebodys")
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    pictures = np.random.default_rng(0).random((40, 3, 32, 32), dtype=np.float32)
    np.savez(tmp_path / "pictures.npz", x_train=pictures[:30], x_test=pictures[30:])
    return tmp_path


def test_a_file_of_a_trainer_is_shown_without_its_code(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(trained / "a.pt")]) == 0
    shown = capsys.readouterr().out
    assert "classes.weight (3, 8, 1, 1)" in shown
    assert "float16" in shown
    assert "train_args: {imgsz=32}" in shown
    assert "somebodys" not in sys.modules


def test_two_files_are_fused_with_a_class_of_ones_own(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(trained / name) for name in ("a.pt", "b.pt")]
    words = ["--arch", f"{trained / 'mine.py'}:detector", "--classes", "0-2", "--classes", "3-4", "--preset", "fast"]
    out = trained / "child.safetensors"
    code = main(["fuse", *files, *words, "--data", str(trained / "pictures.npz"), "--out", str(out)])
    said = capsys.readouterr()
    assert code == 0, said.err
    child = load(out, arch=f"{trained / 'mine.py'}:detector(classes=5)")
    found = child(torch.rand(2, 3, 32, 32))
    assert found["classes"].shape == (2, 5, 16, 16)
    assert found["boxes"].shape == (2, 4, 16, 16)


@pytest.mark.parametrize("arguments", ["", "(num_classes=3)"])
def test_one_factory_builds_parents_of_different_labels(
    trained: Path, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By whatever name it takes the number of classes, and whatever number its own default or the user's string has."""
    (trained / "other.py").write_text(f"{OWN}\n\ndef other(num_classes=80):\n    return Mine(num_classes)\n")
    files = [str(trained / name) for name in ("a.pt", "b.pt")]
    words = ["--arch", f"{trained / 'other.py'}:other{arguments}", "--classes", "0-2", "--classes", "2-3", "-q"]
    out = trained / "child.pt"
    code = main(
        ["fuse", *files, *words, "--preset", "fast", "--data", str(trained / "pictures.npz"), "--out", str(out)]
    )
    assert code == 0, capsys.readouterr().err
    assert torch.load(out)["model"]["classes.weight"].shape == (4, 8, 1, 1)


def test_background_is_named_by_its_label(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(trained / name) for name in ("a.pt", "b.pt")]
    words = ["--arch", f"{trained / 'mine.py'}:detector", "--preset", "fast", "--data", str(trained / "pictures.npz")]
    known = ["--classes", "0-2", "--classes", "0,3"]
    out = trained / "child.safetensors"
    code = main(["fuse", *files, *words, *known, "--background", "0", "--out", str(out)])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert load(out, arch=f"{trained / 'mine.py'}:detector(classes=4)").classes.weight.shape[0] == 4
    for own, sentence in (("3", "--background is 3, which must be a label of each parent"), ("no", "none of the")):
        assert main(["fuse", *files, *words, *known, "--background", own, "--out", str(trained / "no.pt")]) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")
