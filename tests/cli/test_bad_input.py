"""What people give by mistake, and what ends half-way: one clear sentence, or it goes on; never a broken file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import Place, files, trust, write_data

from depfuse.cli import main
from depfuse.io.checkpoint import read_checkpoint
from depfuse.refit.layerwise.ridge import Rows, ridge


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def plain(place: Place) -> Place:
    """Parents without BatchNorm."""
    for seed, path in enumerate(place.parents):
        place.write_parent(path, seed, f"{place.arch}(norm=False)", norm=False)
    return place


def refused(place: Place, capsys: pytest.CaptureFixture[str], *arguments: object, **options: object) -> str:
    """The one sentence with which a fusion is refused, and which leaves no file."""
    before = files(place.folder)
    assert place.fuse(*arguments, **options) == 2  # type: ignore[arg-type]
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("depfuse: ")
    assert stderr.count("\n") == 1, stderr
    assert files(place.folder) == before
    return stderr


def finite(path: Path) -> bool:
    return all(bool(t.isfinite().all()) for t in read_checkpoint(path).state.values() if t.is_floating_point())


def test_fewer_images_than_a_layer_has_inputs(place: Place, capsys) -> None:
    options = ["--refit", "ridge", "--refit-steps", 0, "--calibration", 8]
    assert place.fuse(*options) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("depfuse: warning: ")]
    assert "3.weight has 54 inputs, but 7 images show only 28 examples of them" in warnings[0]
    assert all("give more calibration images" in line for line in warnings if "examples of them" in line)
    assert finite(place.folder / "child.safetensors")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data-root", "elsewhere"], "--data-root says where cifar10, cifar100, mnist are kept, and"),
        (["--set", "teach.head=always"], "teach.head always finds a head that teaches the child, and nothing teaches"),
        (["--set", "train.self_training=100000000000000000000"], "less than or equal to 100000"),
        (["--set", "refit.steps=100000000000000000000", "--refit", "ridge"], "less than or equal to 1000000"),
    ],
)
def test_settings_that_nothing_reads_or_that_have_no_end(
    place: Place, capsys, options: list[str], sentence: str
) -> None:
    assert sentence in refused(place, capsys, *options)


def test_more_images_than_there_are_is_said(place: Place, capsys) -> None:
    assert place.fuse("--test", 41, "--calibration", 99) == 0
    said = capsys.readouterr().err
    assert "--test 41 is more than the 40 test images: all are taken" in said
    assert "--calibration 99 is more than the 40 training images: all are used" in said


def test_few_rows_are_fitted_with_more_ridge() -> None:
    x, truth = torch.randn(1, 2000, 40), torch.randn(1, 40, 3)
    y = x @ truth + 3 * torch.randn(1, 2000, 3)
    prior = torch.zeros(1, 40, 3)
    few, many = (ridge(Rows(x[:, :n], y[:, :n]), prior, intercept=False).strength for n in (30, 2000))
    assert few > many


def test_images_that_are_all_the_same(place: Place) -> None:
    """Every Gram matrix is singular."""
    other = place.folder / "same.npz"
    write_data(other)
    with np.load(other) as found:
        arrays = dict(found)
    arrays["x_train"] = np.full_like(arrays["x_train"], 90)
    np.savez(other, **arrays)
    for refit in ("ridge", "regmean", "least-squares"):
        steps = ("--refit-steps", 2) if refit == "ridge" else ()
        assert place.fuse("--data", other, "--refit", refit, *steps, "--quiet") == 0
        assert finite(place.folder / "child.safetensors")


def test_reset_of_a_network_without_batch_norm(plain: Place, capsys) -> None:
    said = refused(plain, capsys, "--renorm", "reset")
    assert "renorm reset has nothing to reset: Sequential has no BatchNorm" in said
    assert "choose renorm repair, data-free or none" in said
    assert "has no BatchNorm" in refused(plain, capsys, "--parents-renorm", "reset")
    assert plain.fuse("--renorm", "auto", "--quiet") == 0


def test_statistics_of_images_that_nobody_looks_at(plain: Place, capsys) -> None:
    assert "has no BatchNorm; choose renorm repair" in refused(plain, capsys, "--augment-statistics")
    assert "would be ignored" in refused(plain, capsys, "--augment-statistics", "--renorm", "none")
    assert plain.fuse("--augment-statistics", "--renorm", "repair", "--quiet") == 0


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan"])
def test_shares_of_channels_that_are_none(place: Place, capsys, share: str) -> None:
    assert "keep_worst" in refused(place, capsys, "--keep-worst", share)


@pytest.mark.parametrize("outputs", [(2, 2), (2, 3)])
@pytest.mark.parametrize("labelled", [[], ["--labelled", 16, "--refit", "ridge"]])
def test_parents_of_some_labels_without_classes(place: Place, capsys, outputs, labelled) -> None:
    for seed, (path, classes) in enumerate(zip(place.parents, outputs, strict=True)):
        place.write_parent(path, seed, classes=classes)
    said = [refused(place, capsys, *labelled)]
    arches = [f"{place.arch}(classes={classes})" for classes in outputs]
    said.append(refused(place, capsys, *labelled, "--arch", arches[0], "--arch", arches[1]))
    for sentence in said:
        assert "a.safetensors has 2 outputs, but the labels name 4 classes" in sentence
        assert "--classes, once per parent" in sentence


KILLED = """
import dataclasses, sys, time
from depfuse.teach import distil
from depfuse.cli import main
import torch

def stand_still(report):
    print("saved", flush=True)
    time.sleep(600)

def fit(*arguments, **options):
    saving = dataclasses.replace(options["saving"], seconds=0)
    return whole(*arguments, **{**options, "progress": stand_still, "saving": saving})

torch.set_num_threads(int(sys.argv[1]))
whole, distil.fit = distil.fit, fit
main(sys.argv[2:])
"""


def test_a_distillation_that_was_killed_goes_on_bit_for_bit(place: Place) -> None:
    """The process is killed outright when the first of two epochs has been saved."""

    def command(name: str) -> list[str]:
        options = ["--calibration", "32", "--batch-size", "16", "--refit", "none", "--distil", "2", "--quiet"]
        return ["fuse", *map(str, place.parents), *trust(*place.parents), *options, "--out", str(place.folder / name)]

    assert main(command("whole.safetensors")) == 0
    arguments = [sys.executable, "-c", KILLED, str(torch.get_num_threads()), *command("parts.safetensors")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    left = {path.name for path in place.folder.glob("parts*")}
    assert left == {"parts.safetensors.training.child-distil"}
    assert torch.load(place.folder / left.pop(), weights_only=True)["epoch"] == 1
    assert main(command("parts.safetensors")) == 0
    whole, parts = (read_checkpoint(place.folder / f"{name}.safetensors") for name in ("whole", "parts"))
    assert parts.state.keys() == whole.state.keys()
    assert all(torch.equal(tensor, parts.state[key]) for key, tensor in whole.state.items())
    assert [path.name for path in place.folder.glob("parts*")] == ["parts.safetensors"]
