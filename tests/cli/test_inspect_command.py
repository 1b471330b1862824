"""`depfuse inspect` shows the sets of weights in a file, and all else, without running anything."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import assert_one_sentence
from digits_parents import digits_files
from torch import nn

from depfuse.cli import main
from depfuse.models import build_network

ARCH = "digits_resnet(width=0.25)"


class Touching:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["inspect", *map(str, words)]) == 0
    stdout, stderr = capsys.readouterr()
    assert stderr == ""
    return stdout


def test_sets_and_other_entries_are_shown_and_nothing_is_run(tmp_path: Path, capsys) -> None:
    state = build_network(ARCH).state_dict()
    content = {
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "state_dict_ema": state,
        "epoch": 4,
        "args": argparse.Namespace(lr=0.1, data=Path("photos")),
        "optimizer": {"state": {n: {"exp_avg": torch.zeros(3)} for n in range(5)}},
        "evil": Touching(tmp_path / "ran"),
        "names": {0: "cat"},
    }
    torch.save(content, tmp_path / "net.pth")
    text = shown(capsys, tmp_path / "net.pth")
    parameters = f"{sum(value.numel() for value in state.values()):,}"
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    for key, prefix in (("state_dict", "module."), ("state_dict_ema", "")):
        assert rows[key][1:3] == [str(len(state)), parameters]
        assert f"{prefix}conv1.weight" in rows[key]
        assert f"{prefix}linear.weight" in rows[key] or f"{prefix}linear.bias" in rows[key]
    assert "optimizer.state.* (5 of them)" in text
    assert "  epoch: 4\n" in text
    assert "  args: argparse.Namespace(lr=0.1, data=pathlib.PosixPath('photos'))\n" in text
    assert "  names: {0='cat'}\n" in text
    assert not (tmp_path / "ran").exists()
    listed = shown(capsys, tmp_path / "net.pth", "--key", "state_dict_ema")
    assert len(listed.splitlines()) == len(state) + 1
    assert_one_sentence(
        capsys, main(["inspect", str(tmp_path / "net.pth"), "--key", "ema"]), "it holds state_dict, state_dict_ema"
    )


def test_a_card_is_shown(capsys) -> None:
    text = shown(capsys, digits_files("a")[0])
    assert "card: architecture: 'digits_resnet(width=1.25)'" in text
    assert "(top)" in text


def test_every_format_is_shown(tmp_path: Path, capsys) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = network.state_dict()
    torch.save(network, tmp_path / "whole.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "net.npz", **{key: value.numpy() for key, value in state.items()})
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    safetensors.torch.save_file(state, tmp_path / "saved" / "model.safetensors")
    for name in ("whole.pt", "old.pt", "net.npz", "saved"):
        text = shown(capsys, tmp_path / name)
        (row,) = [line.split() for line in text.splitlines() if line.startswith("(top)")]
        assert row[1:3] == [str(len(state)), str(sum(value.numel() for value in state.values()))], name
    assert "a pickled torch.nn.modules.container.Sequential" in shown(capsys, tmp_path / "whole.pt")
    assert "1 file: model.safetensors" in shown(capsys, tmp_path / "saved")


def test_files_without_tensors_or_with_odd_names_are_shown(tmp_path: Path, capsys) -> None:
    torch.save({"epoch": 3, "x\x1b[2J": "y\x1b[2J" * 100, "n": 10**500, "deep": [[[[[1]]]]]}, tmp_path / "net.pt")
    text = shown(capsys, tmp_path / "net.pt")
    assert "It holds no tensors." in text
    assert "\x1b" not in text
    assert "n: a large number" in text
    assert max(map(len, text.splitlines())) < 400
    torch.save({"only": torch.ones(1)}, tmp_path / "net.pt")
    assert "only (1)" in shown(capsys, tmp_path / "net.pt")
    torch.save([1, 2], tmp_path / "net.pt")
    assert "It holds no tensors." in shown(capsys, tmp_path / "net.pt")


def test_a_key_chooses_for_one_file_or_for_all(tmp_path: Path, capsys) -> None:
    (plain,) = digits_files("same-a")
    state = safetensors.torch.load_file(plain)
    broken = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"params": broken, "params_ema": state}, tmp_path / "net.pth")
    evaluate = ["eval", plain, str(tmp_path / "net.pth"), "--arch", "digits_resnet(width=1.25)", "--data", "digits"]
    scores = {}
    for key in (None, "params", "params_ema"):
        assert main([*evaluate, *(["--key", key] if key else [])]) == 0
        stdout, stderr = capsys.readouterr()
        scores[key] = stdout.splitlines()[-1].split()[1]
        said = "took params_ema as the average of a training's steps, not params, which fit too (--key ... chooses)"
        assert (said in stderr) == (key is None)
    assert scores[None] == scores["params_ema"] != scores["params"]
    assert_one_sentence(capsys, main([*evaluate, "--key", "ema"]), "it holds params, params_ema")


def test_an_upscaler_is_recognised(tmp_path: Path, capsys) -> None:
    pytest.importorskip("spandrel")
    state = build_network("spandrel:Compact(num_feat=12, num_conv=3, upscale=2)").state_dict()
    torch.save({"step": 4, "params_ema": state}, tmp_path / "up.pth")
    text = shown(capsys, tmp_path / "up.pth")
    assert "recognised by its tensors: spandrel:Compact(num_feat=12, num_conv=3, upscale=2)" in text
    torch.save(build_network(ARCH).state_dict(), tmp_path / "digits.pth")
    assert "recognised by" not in shown(capsys, tmp_path / "digits.pth")
