"""The commands under `torchrun`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shared_work import FUSION, torchrun

from depfuse.cli import main as depfuse


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_two_processes_write_the_child_of_one(tmp_path: Path) -> None:
    arguments = [*FUSION[:-1], "ridge", "--refit-steps", "4", "--batch-size", "100"]
    torch.set_num_threads(1)
    assert depfuse([*arguments, "--out", str(tmp_path / "one.safetensors")]) == 0
    assert torchrun("-m", "depfuse", *arguments, "--out", str(tmp_path / "two.safetensors")).returncode == 0
    assert_same_weights(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*FUSION, "--batch-size", "450"], "2 processes share 1 calibration batches, so that some have nothing"),
        (["fuse", "nothing.safetensors", "nothing.safetensors"], "depfuse: "),
    ],
)
def test_bad_input_is_said_once(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = torchrun("-m", "depfuse", *arguments, "--out", str(tmp_path / "child.safetensors"))
    assert done.stderr.count(said) == 1
    assert "depfuse/cli" not in done.stderr  # no traceback
    assert (done.returncode == 0) == said.startswith("2 processes")
    assert (tmp_path / "child.safetensors").exists() == (done.returncode == 0)


@pytest.mark.slow
def test_two_processes_train_well_and_leave_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "network.safetensors"
    arguments = ["train", "digits_resnet", "--data", "digits", "--epochs", "3", "--batch-size", "64"]
    done = torchrun("-m", "depfuse", *arguments, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr
    assert float(done.stdout.split(": ")[1].split(" %")[0]) > 95
    assert {path.name for path in tmp_path.iterdir()} == {"network.safetensors"}


def some_cifar10(folder: Path, out: Path) -> None:
    """A few images of each class, from the strips that they are kept in."""
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 60), ("test", 10)):
        strips = sorted((folder / split).glob("*.00.webp"))
        images = [np.asarray(Image.open(strip).convert("RGB")).reshape(-1, 32, 32, 3)[:count] for strip in strips]
        arrays[f"x_{split}"] = np.concatenate(images)
        arrays[f"y_{split}"] = np.repeat(np.arange(len(strips), dtype=np.uint8), count)
    np.savez(out, **arrays)


@pytest.mark.slow
def test_real_networks_give_the_same_child(shared: Path, tmp_path: Path) -> None:
    some_cifar10(shared / "data" / "cifar10", tmp_path / "cifar.npz")
    parents = [str(shared / "checkpoints" / "cifar10-resnet20" / f"run8-{number}.th") for number in (1, 2)]
    arguments = ["fuse", *parents, "--arch", f"{shared / 'models' / 'cifar_resnet_a.py'}:resnet20"]
    arguments += ["--data", str(tmp_path / "cifar.npz"), "--calibration", "500", "--batch-size", "100"]
    arguments += ["--distance", "scaled", "--refit", "ridge", "--refit-steps", "0"]
    for option, values in (("--mean", (0.485, 0.456, 0.406)), ("--std", (0.229, 0.224, 0.225))):
        arguments += [option, ",".join(map(str, values))]
    torch.set_num_threads(1)
    assert depfuse([*arguments, "--out", str(tmp_path / "one.safetensors")]) == 0
    two = torchrun("-m", "depfuse", *arguments, "--out", str(tmp_path / "two.safetensors"))
    assert two.returncode == 0, two.stderr
    assert "cannot be sent" not in two.stderr
    assert_same_weights(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
