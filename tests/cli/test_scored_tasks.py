"""Commands on networks whose outputs are no class scores: they are scored by their own measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from depfuse.cli import main

ARCHITECTURES = """
from torch import nn


class Body(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
                         nn.BatchNorm2d(8), nn.ReLU())


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.body, self.head = Body(), nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Maps(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        self.body, self.head = Body(), nn.Conv2d(8, outputs, 1)

    def forward(self, x):
        return {"out": self.head(self.body(x))}


class Several(Net):
    def __init__(self):
        super().__init__(3)
        self.size = nn.Linear(3, 2)

    def forward(self, x):
        kinds = super().forward(x)
        return {"kind": kinds, "size": self.size(kinds)}


def one():
    return Net(1)


def three():
    return Net(3)


def spots():
    return Maps(1)
"""
PARENTS = ["a.safetensors", "b.safetensors"]
FUSE = ["fuse", *PARENTS, "--preset", "fast", "--calibration", "48", "--report", "r.json", "--out", "c.safetensors"]


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, type[nn.Module]]:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(ARCHITECTURES)
    space: dict[str, type[nn.Module]] = {}
    exec(ARCHITECTURES, space)
    return space


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def train(network: nn.Module, images: Tensor, loss, steps: int = 40) -> None:
    """A few steps, so that the parents know something."""
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(network(images.float() / 255)).backward()
        optimiser.step()


def write_parents(make, images: Tensor, loss, steps: int = 40) -> None:
    for number, name in enumerate("ab"):
        torch.manual_seed(number)
        network = make()
        train(network, images, loss, steps)
        save_file(network.state_dict(), f"{name}.safetensors")


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_maps_are_scored_by_masks(networks, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(64)
    masks = (images[:, 0] > 128).long() + (images[:, 1] > 128)
    for part, numbers in (("train", range(48)), ("test", range(48, 64))):
        for kind in ("images", "masks"):
            Path(part, kind).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(f"{part}/images/{number}.png")
            Image.fromarray(masks[number].numpy().astype(np.uint8)).save(f"{part}/masks/{number}.png")
    write_parents(networks["Maps"], images, lambda out: nn.functional.cross_entropy(out["out"], masks))
    common = ["--arch", "nets.py:Maps", "--data", "."]
    said = ran(capsys, *FUSE, *common)
    report = json.loads(Path("r.json").read_text())
    assert report["child"]["measure"] == {"name": "mean IoU", "unit": "%"}
    assert report["child"]["accuracy"] is None
    assert 0 < report["child"]["score"] <= 1
    assert set(report["child"]["further"]) == {"Dice", "pixel accuracy"}
    assert report["advice"]["images"] == 16
    assert f"{100 * report['child']['score']:.2f} %" in said
    assert "mean IoU" in said
    card = json.loads(Path("c.json").read_text()) if Path("c.json").exists() else None
    assert card is None or "mean_IoU" in str(card)
    told = ran(capsys, "eval", "a.safetensors", "c.safetensors", *common)
    assert "mean IoU" in told
    assert f"{100 * report['child']['score']:.2f} %" in told
    assert "Of 16 channels of b.safetensors" in ran(capsys, "match", *PARENTS, *common, "--calibration", "48")
    path = ran(capsys, "path", "a.safetensors", "b.safetensors", *common, "--points", "3", "--preset", "fast")
    assert "mean IoU" in path
    assert "points of mean IoU" in path
    ran(capsys, "report", ".", "--out", "page.html")
    assert "mean IoU" in Path("page.html").read_text()
    assert "mean IoU" in ran(capsys, *FUSE, *common, "--distil", "1")


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_numbers_are_scored_by_what_they_explain(networks, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(64)
    targets = images.float().mean((2, 3)) / 25.5 - 5
    arrays = {"x_train": images[:48], "y_train": targets[:48], "x_test": images[48:], "y_test": targets[48:]}
    np.savez("numbers.npz", **{name: array.numpy() for name, array in arrays.items()})
    write_parents(networks["three"], images, lambda out: nn.functional.mse_loss(out, targets))
    common = ["--arch", "nets.py:three", "--data", "numbers.npz"]
    said = ran(capsys, *FUSE, *common, "--task", "regression")
    report = json.loads(Path("r.json").read_text())
    assert report["child"]["measure"] == {"name": "R2", "unit": ""}
    assert "R2" in said
    assert "R2" in ran(capsys, "eval", "a.safetensors", *common, "--task", "regression")
    assert "R2" in ran(capsys, *FUSE, *common, "--task", "regression", "--set", "train.finetune=1")
    assert json.loads(Path("r.json").read_text())["seconds"]["finetune"] > 0
    begun = ["--task", "regression", "--data", "wrong.npz"]
    np.savez(
        "wrong.npz", **{name: array.numpy()[:, :2] if "y" in name else array.numpy() for name, array in arrays.items()}
    )
    assert main([*FUSE, *common, *begun]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "outputs (16, 3) are scored by targets of the same shape" in said
    assert "finding and proving" not in said


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_of_several_tensors_the_same_is_scored_by_every_command(networks, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(64)
    labels = (images.float().mean((2, 3)) > 127).sum(1).clamp(max=2)
    arrays = {"x_train": images[:48], "y_train": labels[:48], "x_test": images[48:], "y_test": labels[48:]}
    np.savez("kinds.npz", **{name: array.numpy() for name, array in arrays.items()})
    write_parents(networks["Several"], images, lambda out: nn.functional.cross_entropy(out["kind"], labels))
    common = ["--arch", "nets.py:Several", "--data", "kinds.npz"]
    assert "Keep" in ran(capsys, *FUSE, *common)
    report = json.loads(Path("r.json").read_text())
    assert report["recipe"]["task"] == {"name": "weighted"}
    child = networks["Several"]().eval()
    child.load_state_dict(load_file("c.safetensors"))
    with torch.no_grad():
        right = (child(images[48:].float() / 255)["kind"].argmax(1) == labels[48:]).double().mean()
    assert report["child"]["accuracy"] == pytest.approx(float(right))
    assert f"{100 * right:.2f} %" in ran(capsys, "eval", "c.safetensors", *common)


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_one_logit_is_scored_by_labels_of_two_classes(networks, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(64)
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    arrays = {"x_train": images[:48], "y_train": labels[:48], "x_test": images[48:], "y_test": labels[48:]}
    np.savez("two.npz", **{name: array.numpy() for name, array in arrays.items()})
    loss = nn.functional.binary_cross_entropy_with_logits
    write_parents(networks["one"], images, lambda out: loss(out[:, 0], labels.float()))
    said = ran(capsys, *FUSE, "--arch", "nets.py:one", "--data", "two.npz", "--task", "binary")
    report = json.loads(Path("r.json").read_text())
    assert report["child"]["measure"] == {"name": "accuracy", "unit": "%"}
    assert set(report["child"]["further"]) == {"AUROC", "average precision"}
    assert "of 16 test images it gets" in said or "Keep" in said


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize("files", [False, True])
def test_one_logit_of_each_pixel_is_told_from_a_number_by_masks_of_0_and_1(
    networks, capsys: pytest.CaptureFixture[str], files: bool
) -> None:
    """Trained little, a logit is spread as numbers are; without masks that is said, and how to say otherwise."""
    images = pictures(64)
    masks = (images.float().mean(1) > 127).long()
    loss = nn.functional.binary_cross_entropy_with_logits
    write_parents(networks["spots"], images, lambda out: loss(out["out"][:, 0], masks.float()), steps=3)
    if files:
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            part = "train" if number < 48 else "test"
            for kind, values in (("images", image.movedim(0, 2)), ("masks", 255 * mask)):
                Path("two", part, kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.byte().numpy()).save(Path("two", part, kind, f"{number}.png"))
        data = "two"
    else:
        arrays = {"x_train": images[:48], "y_train": masks[:48], "x_test": images[48:], "y_test": masks[48:]}
        np.savez("two.npz", **{name: array.numpy() for name, array in arrays.items()})
        data = "two.npz"
    common = ["--arch", "nets.py:spots", "--data", data]
    ran(capsys, *FUSE, *common)
    report = json.loads(Path("r.json").read_text())
    assert report["recipe"]["task"] == {"name": "binary"}
    assert "mean IoU" in ran(capsys, "eval", "a.safetensors", *common)
    np.save("bare.npy", images.numpy())
    bare = ["--arch", "nets.py:spots", "--data", "bare.npy"]
    for command in (FUSE, ["eval", "a.safetensors", "b.safetensors"]):
        assert main([*command, *bare]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "the outputs are taken for numbers: they are spread as numbers are" in said
        assert "name the --task if they are not" in said
        assert main([*command, *bare, "--task", "binary"]) == 0
        assert "taken for" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_labels_that_do_not_fit_the_outputs_are_refused(networks, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(64)
    wrong = np.random.default_rng(0).random((64, 5)).astype(np.float32)
    parts = {"x_train": images[:48], "y_train": wrong[:48], "x_test": images[48:], "y_test": wrong[48:]}
    np.savez("wrong.npz", **{name: np.asarray(array) for name, array in parts.items()})
    write_parents(networks["three"], images, lambda out: out.square().mean())
    assert main([*FUSE, "--arch", "nets.py:three", "--data", "wrong.npz", "--task", "regression"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "are scored by targets of the same shape, (3,) for each image" in said
    assert "--task" in said
    assert not Path("c.safetensors").exists()


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_words_and_units_are_those_of_the_task(networks, capsys: pytest.CaptureFixture[str]) -> None:
    """Squared errors are no nats, embeddings under classes have no loss, and only classes have a calibration error."""
    images = pictures(64)
    kinds = images.float().mean((2, 3)).argmax(1)
    targets = {"regression": images.float().mean((2, 3)) / 25.5, "features": kinds}
    write_parents(networks["three"], images, lambda out: nn.functional.mse_loss(out, targets["regression"]))
    common = ["--arch", "nets.py:three", "--data", "d.npz", "--calibration", "48", "--preset", "fast", "--points", "3"]
    for task, labels in targets.items():
        arrays = {"x_train": images[:48], "y_train": labels[:48], "x_test": images[48:], "y_test": labels[48:]}
        np.savez("d.npz", **{name: array.numpy() for name, array in arrays.items()})
        said = ran(capsys, "path", "a.safetensors", "b.safetensors", *common, "--task", task)
        assert "nats" not in said
        assert "not finite" not in said
        assert "calibration error" not in said
        assert ("of loss and" in said) is (task == "regression")
        evaluated = ran(capsys, "eval", "a.safetensors", *common[:4], "--task", task)
        assert "calibration" not in evaluated
        assert ("loss" in evaluated) is (task == "regression")
        found = ran(
            capsys,
            "tune",
            "a.safetensors",
            "b.safetensors",
            *common[:4],
            "--preset",
            "fast",
            "--task",
            task,
            "--trials",
            "1",
            "--calibration",
            "24",
            "--labels",
            "20",
            "--out",
            f"tuned-{task}",
        )
        assert ("held-out R2" if task == "regression" else "held-out recall at 1") in found
    several = ["fuse", "a.safetensors", "b.safetensors", "--arch", "nets.py:Several", "--data", "d.npz"]
    write_parents(networks["Several"], images, lambda out: nn.functional.cross_entropy(out["kind"], kinds))
    assert main([*several, "--preset", "fast", "--calibration", "48", "--set", "train.self_training=2"]) == 2
    assert "the networks' outputs are of task weighted" in " ".join(capsys.readouterr().err.split())
