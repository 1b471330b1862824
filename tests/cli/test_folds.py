"""Five folds of a segmentation network become one: their files as trainers write them, patches of volumes, masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from depfuse.cli import main
from experiments.lib.folds.networks import UNet

FACTORY = "from experiments.lib.folds.networks import UNet\n\n\ndef factory({0}):\n    return UNet({1})\n"
FILES = Callable[..., list[str]]


class Trainer:
    """An object that trainers leave in their files; reading it must not run its code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a file ran')",)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FILES:
    """Write five folds and six volumes with masks, and give the words of a command."""
    monkeypatch.chdir(tmp_path)

    def write(dimensions: int = 2, norm: str = "instance", channels: int = 2, classes: int = 3) -> list[str]:
        Path("my_unet.py").write_text(
            FACTORY.format("classes=3, width=3", f"{channels}, classes, {dimensions}, '{norm}', width")
        )
        paths = []
        for fold in range(5):
            torch.manual_seed(fold)
            network = UNet(channels, classes, dimensions, norm, width=3)
            optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99)
            network.train()(torch.randn(2, channels, *[8] * dimensions))[0].square().mean().backward()
            optimizer.step()
            path = Path(f"fold_{fold}", "checkpoint_final.pth")
            path.parent.mkdir(exist_ok=True)
            torch.save(
                {
                    "network_weights": network.state_dict(),
                    "optimizer_state": optimizer.state_dict(),
                    "grad_scaler_state": None,
                    "logging": {"mean_fg_dice": [0.1, 0.2]},
                    "init_args": {"configuration": f"{dimensions}d", "fold": fold},
                    "trainer": Trainer(),
                },
                path,
            )
            paths.append(str(path))
        random = np.random.default_rng(0)
        Path("volumes").mkdir()
        for number in range(6):
            size = (8, 12, 9 + number)[-dimensions:]
            data = random.normal(size=(channels, *size)).astype(np.float32)
            np.savez_compressed(f"volumes/case_{number}.npz", data=data, seg=random.integers(0, 3, (1, *size)))
        return ["fuse", *paths, "--arch", "my_unet.py:factory", "--data", "volumes", "--crop", "8"]

    return write


@pytest.mark.parametrize(("dimensions", "norm"), [(2, "batch"), (3, "instance")])
def test_five_folds_become_one(files: FILES, capsys, dimensions: int, norm: str) -> None:
    child = ["--calibration", "12", "--preset", "fast", "--out", "child.pth", "--report", "report.json"]
    assert main([*files(dimensions, norm), *child]) == 0
    said = capsys.readouterr()
    assert "1 of its 6 volumes, drawn by seed 0, are that" in said.err
    sides = ",".join(["8"] * dimensions)
    assert f"(--crop {sides}) are cut out of 6 volumes at random, by seed 0" in said.err
    assert "mean IoU" in said.out
    assert "Dice" in said.out
    assert "fold_0/checkpoint_final.pth" in said.out
    written = torch.load("child.pth")
    assert written.keys() == {"network_weights"}
    network = UNet(2, 3, dimensions, norm, width=3)
    network.load_state_dict(written["network_weights"])
    report = json.loads(Path("report.json").read_text())
    assert report["recipe"]["task"]["name"] == "dense"
    assert len(report["parents"]) == 5


@pytest.mark.slow
def test_maps_of_every_size_count_where_networks_return_them(files: FILES, capsys) -> None:
    words = files(2, "batch")
    Path("my_unet.py").write_text(
        "from experiments.lib.folds.networks import UNet\n\n\nclass Always(UNet):\n    def forward(self, x):\n"
        "        own, self.training = self.training, True\n        maps = super().forward(x)\n"
        "        self.training = own\n        return maps\n\n\n"
        "def factory():\n    return Always(2, 3, 2, 'batch', 3)\n"
    )
    child = ["--calibration", "30", "--set", "refit=ridge", "--out", "child.safetensors", "--report", "report.json"]
    assert main([*words, *child]) == 0
    assert "Dice" in capsys.readouterr().out
    assert json.loads(Path("report.json").read_text())["recipe"]["task"]["name"] == "weighted"


def test_volumes_without_masks_are_compared_with_the_ensemble(files: FILES, capsys) -> None:
    words = files(3, "instance")
    for path in Path("volumes").iterdir():
        with np.load(path) as arrays:
            np.save(path.with_suffix(".npy"), arrays["data"])
        path.unlink()
    assert main([*words, "--calibration", "12", "--preset", "fast", "--out", "child.pth"]) == 0
    said = capsys.readouterr()
    assert "volumes has no labels" in said.err
    assert "1 of its 6 volumes" in said.err
    assert "agree" in said.out


def refused(capsys, words: list[str], *said: str) -> None:
    """Check that a command ends in one sentence, after warnings of where patches are cut, and writes nothing."""
    code = main([*words, "--preset", "fast", "--out", "child.pth"])
    found = capsys.readouterr()
    assert (code, found.out) == (2, "")
    *warned, last = found.err.splitlines()
    assert all(line.startswith("depfuse: warning: volumes") for line in warned)
    assert all(word in last for word in said), last
    assert not Path("child.pth").exists()


def test_what_does_not_fit_is_named(files: FILES, capsys) -> None:
    words = files(2, "instance")
    refused(capsys, [*words[:-1], "64"], "--crop 64,64", "give a smaller one, 12,14 at most")
    refused(capsys, [*words[:-1], "a"], "--crop 'a' must be pixels a side, like 64, or the sides of a patch")
    refused(capsys, [*words[:-1], "8,8,8"], "patches have 3 sides")
    with np.load("volumes/case_2.npz") as arrays:
        data, seg = arrays["data"], arrays["seg"]
    broken = data.copy()
    broken[0, 1, 1] = np.nan
    np.savez("volumes/case_2.npz", data=broken, seg=seg)
    refused(capsys, words, "case_2.npz: data holds numbers that are not finite")
    np.savez("volumes/case_2.npz", data=data[:1], seg=seg)
    refused(capsys, words, "case_2.npz: data (1, 12,", "as many channels")
    for path in Path("volumes").iterdir():
        np.savez(path, data=data, seg=seg + 7)
    refused(capsys, words, "label 9, but the network has 3 outputs")


def test_folds_that_differ_are_named(files: FILES, capsys) -> None:
    words = files(2, "instance")
    for own, said in (
        (UNet(2, 4, 2, "instance", 3), "4"),
        (UNet(2, 3, 2, "instance", 4), "fold_4"),
        (UNet(2, 3, 2, "batch", 3), "fold_4"),
        (UNet(3, 3, 2, "instance", 3), "fold_4"),
    ):
        torch.save({"network_weights": own.state_dict()}, "fold_4/checkpoint_final.pth")
        refused(capsys, words, said)
