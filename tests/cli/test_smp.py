"""segmentation_models_pytorch: two Unets become one by the command, and the library's own class loads the child."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from depfuse.cli import main
from experiments.lib.folds.training import loss_of

pytestmark = pytest.mark.slow
smp = pytest.importorskip(
    "segmentation_models_pytorch",
    reason="segmentation_models_pytorch is not installed: pip install 'depfuse[coverage]'",
)

SIDE = 32
ARCH = {"encoder_name": "resnet18", "encoder_weights": None, "encoder_depth": 3, "decoder_channels": (24, 16, 8)}
NAMED = "segmentation_models_pytorch:Unet(" + ", ".join(f"{key}={value!r}" for key, value in ARCH.items())


def discs_and_squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a red, green or blue disc or square in noise, and the class of each pixel: background, disc, square."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 + 0.15 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    labels = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for image, mask in zip(images, labels, strict=True):
        top, left, radius, colour, square = (
            int(torch.randint(low, high, (), generator=generator))
            for low, high in ((9, 23), (9, 23), (5, 8), (0, 3), (0, 2))
        )
        down, right = (rows - top).abs(), (columns - left).abs()
        inside = torch.maximum(down, right) <= radius if square else down**2 + right**2 <= radius**2
        image[colour][inside] += 0.5
        mask[inside] = 1 + square
    return images, labels


def trained(seed: int) -> nn.Module:
    """Train a Unet for seconds."""
    torch.manual_seed(seed)
    network: nn.Module = smp.Unet(**ARCH, classes=3)
    images, labels = discs_and_squares(200, seed)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(100):
        part = torch.arange(16 * step, 16 * step + 16) % len(images)
        loss = loss_of(network(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    return network


def dice(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Compute the Dice of discs and squares, their mean."""
    with torch.no_grad():
        found = functional.one_hot(network(images).argmax(1), 3)[..., 1:]
    wanted = functional.one_hot(labels, 3)[..., 1:]
    both = (found * wanted).sum((0, 1, 2))
    return float((2 * both / (found + wanted).sum((0, 1, 2)).clamp_min(1)).mean())


def test_two_unets_become_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parents = [trained(seed) for seed in (1, 2)]
    for name, parent in zip(("a.pt", "b.pt"), parents, strict=True):
        torch.save(parent.state_dict(), name)
    Path("photos").mkdir()
    for number, image in enumerate(discs_and_squares(80, 3)[0]):
        pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(f"photos/{number:03d}.png")
    words = ["fuse", "a.pt", "b.pt", "--data", "photos", "--task", "dense", "--arch", f"{NAMED}, classes=3)"]
    # The pixels as they are: the parents were trained on such.
    words += ["--mean", "0,0,0", "--std", "1,1,1"]
    assert main([*words, "--out", "child.pt", "--report", "report.json"]) == 0
    assert "agree" in capsys.readouterr().out

    child = smp.Unet(**ARCH, classes=3)
    child.load_state_dict(torch.load("child.pt"))
    test = discs_and_squares(200, 4)
    own = [dice(parent, *test) for parent in parents]
    average = smp.Unet(**ARCH, classes=3).eval()
    first, second = (parent.state_dict() for parent in parents)
    average.load_state_dict(
        {key: (first[key] + second[key]) / 2 if first[key].is_floating_point() else first[key] for key in first}
    )
    assert dice(average, *test) < min(own) - 0.2
    assert dice(child.eval(), *test) > sum(own) / 2 - 0.03
    report = json.loads(Path("report.json").read_text())
    assert report["recipe"]["task"]["name"] == "dense"


def test_another_class_than_the_files_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(seed)
        torch.save(smp.Unet(**ARCH, classes=3).state_dict(), name)
    Path("photos").mkdir()
    for number, image in enumerate(discs_and_squares(4, 3)[0]):
        Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(f"photos/{number}.png")
    words = ["fuse", "a.pt", "b.pt", "--data", "photos", "--arch", f"{NAMED}, classes=5)", "--out", "child.pt"]
    assert main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"a\.pt.*segmentation_head", last), last
    assert not Path("child.pt").exists()
