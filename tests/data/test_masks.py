"""Masks beside images are labels of pixels, matched by the names of their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from depfuse import fuse
from depfuse.cli import main
from depfuse.data import Loader, calibration_loader, load_data
from depfuse.data.masks import MaskFiles, load_masks
from depfuse.errors import DataError, DepfuseWarning
from depfuse.evaluate import evaluate
from depfuse.tasks.label_kinds import IGNORED
from depfuse.tasks.scores import IOU


def write(path: Path, values: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)


def mask(number: int, classes: int = 3, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, classes, size, np.uint8)


def write_pairs(
    root: Path, count: int = 5, images: str = "images", masks: str = "masks", size: tuple[int, int] = (6, 8)
) -> None:
    for number in range(count):
        pixels = np.random.default_rng(100 + number).integers(0, 256, (*size, 3), np.uint8)
        write(root / images / f"{number}.jpg", pixels)
        write(root / masks / f"{number}.png", mask(number, size=size))


def expected(*numbers: int) -> Tensor:
    return torch.stack([torch.from_numpy(mask(number).astype(np.int64)) for number in numbers])


def test_parts_with_masks_have_labels_of_pixels(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        write_pairs(tmp_path / part, count)
    data = load_data(tmp_path)
    assert data.classes == ("0", "1", "2")
    assert data.dense
    assert torch.equal(data.train.held().labels, expected(0, 1, 2))
    assert torch.equal(data.required_test.held().labels, expected(0, 1))
    images, labels = next(iter(Loader(data.train, data.preprocessing, batch_size=2)))
    assert images.shape == (2, 3, 6, 8)
    assert torch.equal(labels, expected(0, 1))


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("JPEGImages", "SegmentationClass")])
def test_without_parts_a_fifth_is_for_tests(tmp_path: Path, images: str, masks: str) -> None:
    write_pairs(tmp_path, 5, images, masks)
    with pytest.warns(DepfuseWarning, match="1 of 5 images, 20 %, drawn by seed 0, are the test images"):
        data = load_data(tmp_path)
    assert len(data.train) == 4
    assert data.required_test.held().labels.shape == (1, 6, 8)


def test_parts_may_lie_below_images_and_masks(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        write_pairs(tmp_path, count, f"images/{part}/city", f"masks/{part}/city")
    data = load_data(tmp_path)
    assert torch.equal(data.train.held().labels, expected(0, 1, 2))
    assert torch.equal(data.required_test.held().labels, expected(0, 1))


def test_masks_are_resized_by_the_nearest_pixel_as_their_images_are(tmp_path: Path) -> None:
    halves = np.zeros((8, 12), np.uint8)
    halves[:, 6:] = 7
    for number in range(2):
        write(tmp_path / "train" / "images" / f"{number}.png", np.stack([halves * 30] * 3, -1))
        write(tmp_path / "train" / "masks" / f"{number}_mask.png", halves)
    data = load_data(tmp_path, size=(4, 4))
    labels = data.train.held().labels
    assert labels.shape == (2, 4, 4)
    assert labels[0].tolist() == [[0, 0, 7, 7]] * 4
    assert (data.train.images[0, 0, 1] > 128).tolist() == [False, False, True, True]


def test_255_is_no_class_unless_there_are_two_values_alone(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "a" / "train" / "images" / f"{number}.png", np.zeros((2, 2, 3), np.uint8))
        write(tmp_path / "a" / "train" / "masks" / f"{number}.png", np.array([[0, 255], [1, 0]], np.uint8))
        write(tmp_path / "b" / "train" / "images" / f"{number}.png", np.zeros((2, 2, 3), np.uint8))
        write(tmp_path / "b" / "train" / "masks" / f"{number}.png", np.array([[0, 255], [255, 0]], np.uint8))
    first, second = load_data(tmp_path / "a"), load_data(tmp_path / "b")
    assert first.train.held().labels[0].tolist() == [[0, IGNORED], [1, 0]]
    assert second.train.held().labels[0].tolist() == [[0, 1], [1, 0]]
    assert first.classes == second.classes == ("0", "1")


def test_palettes_and_16_bits_are_numbers(tmp_path: Path) -> None:
    indexed = Image.fromarray(mask(0))
    indexed.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0])
    assert indexed.mode == "P"
    for number in (0, 1):
        write(tmp_path / "train" / "images" / f"{number}.png", np.zeros((6, 8, 3), np.uint8))
    (tmp_path / "train" / "masks").mkdir()
    indexed.save(tmp_path / "train" / "masks" / "0.png")
    write(tmp_path / "train" / "masks" / "1.png", mask(1).astype(np.uint16) + 300)
    labels = load_data(tmp_path).train.held().labels
    assert torch.equal(labels[:1], expected(0))
    assert torch.equal(labels[1:], expected(1) + 300)


def test_many_masks_stay_in_their_files(tmp_path: Path) -> None:
    write_pairs(tmp_path, 4)
    images, masks = (sorted(str(path) for path in (tmp_path / name).iterdir()) for name in ("images", "masks"))
    labels, classes = load_masks({"train": (images, masks)}, (3000, 3000))
    found = labels["train"]
    assert isinstance(found, MaskFiles)
    assert classes == ("0", "1", "2")
    small = MaskFiles(masks, (4, 6, 8), resized=False, binary=False)
    assert torch.equal(small[1:3].decoded(), expected(1, 2))
    assert torch.equal(small[torch.tensor([3, 0])].decoded(), expected(3, 0))


def broken(root: Path) -> Path:
    """Two pairs, the second of which a test spoils."""
    for number in range(2):
        write(root / "images" / f"{number}.png", np.zeros((6, 8, 3), np.uint8))
        write(root / "masks" / f"{number}.png", mask(number))
    return root / "masks" / "1.png"


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    def refused(name: str, values: np.ndarray | None) -> str:
        spoilt = broken(tmp_path / name)
        spoilt.unlink()
        if values is not None:
            write(spoilt, values)
        with pytest.raises(DataError) as caught:
            load_data(tmp_path / name)
        assert str(caught.value).endswith(f"{tmp_path / name / 'images'} alone has no labels")
        return str(caught.value)

    assert "images/1.png has no mask " in refused("missing", None)
    assert "masks/1.png is in colour" in refused("colour", np.zeros((6, 8, 3), np.uint8))
    assert "masks/1.png is 5 x 6 pixels and its image" in refused("size", mask(0, size=(6, 5)))
    assert "a mask holds 60002, which is no class" in refused("large", mask(0).astype(np.uint16) + 60_000)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Classes(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_networks_are_fused_and_scored_with_them(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", 6)
    data = load_data(tmp_path)
    result = fuse([Dense().eval(), Dense().eval()], "fast", calibration_loader(data, 6))
    assert result.child(torch.rand(1, 3, 6, 8)).shape == (1, 3, 6, 8)
    scores = evaluate(result.child, Loader(data.train, batch_size=3), result.meaning.task)
    assert scores.measure == IOU
    assert 0 < scores.value < 1
    with pytest.raises(DataError, match=r"class scores are \(images, classes\): name the `task` that it is of"):
        evaluate(Dense(), Loader(data.train, batch_size=3))
    with pytest.raises(DataError, match=r"are scored by labels of images, whole numbers \(N,\), and the labels are"):
        evaluate(Classes(), Loader(data.train, batch_size=3))


def test_commands_take_the_images_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "photos", 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "nets.py").write_text("from test_masks import Classes\n")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.save(Classes().state_dict(), tmp_path / f"{name}.pt")
    words = ["--arch", "nets.py:Classes", "--data", "photos", "--preset", "fast"]
    assert main(["fuse", "a.pt", "b.pt", *words, "--out", "child.safetensors"]) == 0
    seen = capsys.readouterr()
    said = "photos has labels of pixels, and the networks give scores of images: its images are taken without labels"
    assert said in seen.err
    assert "no accuracy is known" in seen.out


@pytest.mark.parametrize("value", [255, 100])
@pytest.mark.parametrize("single", [False, True])
def test_masks_in_arrays_mean_what_they_mean_in_files(tmp_path: Path, value: int, single: bool) -> None:
    masks = np.zeros((6, 4, 4), np.uint8)
    masks[:, 1:3] = value
    masks[1] = 0
    images = np.zeros((6, 4, 4, 3), np.uint8)
    labels = masks[:, None] if single else masks
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    data = load_data(tmp_path / "a.npz")
    wanted = torch.from_numpy(labels).long()
    assert torch.equal(data.train.labels, wanted // 255 if value == 255 else wanted)
    assert data.test is not None
    assert torch.equal(data.test.labels, data.train.labels[:2])


def test_places_of_no_class_in_arrays_may_be_as_torchs_losses_have_them(tmp_path: Path) -> None:
    masks = np.tile(np.array([0, 1, 2, -100], np.int16), (6, 4, 1))
    images = np.zeros((6, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=masks)
    labels = load_data(tmp_path / "a.npz").train.labels
    assert labels is not None
    assert labels.unique().tolist() == [-100, 0, 1, 2]
