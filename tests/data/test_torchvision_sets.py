"""Data sets of torchvision are found by name and folder, and nothing is downloaded."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from depfuse import fuse
from depfuse.cli import main
from depfuse.data import Preprocessing, load_data
from depfuse.data.torchvision_sets import Samples
from depfuse.errors import DataError


def write_mnist(root: Path, name: str = "FashionMNIST") -> dict[str, np.ndarray]:
    """Write the files of FashionMNIST as they are downloaded; return their arrays by name."""
    random = np.random.default_rng(0)
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    written = {}
    for part, count in (("train", 12), ("t10k", 6)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        for kind, magic, values in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
            head = struct.pack(">i", magic) + b"".join(struct.pack(">i", size) for size in values.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
            with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + values.tobytes())
            written[f"{part}-{kind}"] = values
    return written


def write_food(root: Path, size: tuple[int, int] = (20, 16)) -> None:
    """Write a small Food101: two classes, four training and two test images."""
    random = np.random.default_rng(1)
    below = root / "food-101"
    (below / "meta").mkdir(parents=True)
    listed: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for name in ("apple_pie", "waffles"):
        (below / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 256, (size[0] + number % 2, size[1], 3), np.uint8)
            Image.fromarray(pixels).save(below / "images" / name / f"{number}.jpg")
            listed["train" if number < 4 else "test"].setdefault(name, []).append(f"{name}/{number}")
    for part, files in listed.items():
        (below / "meta" / f"{part}.json").write_text(json.dumps(files))


def test_parts_images_and_labels_are_torchvisions(tmp_path: Path) -> None:
    written = write_mnist(tmp_path)
    for name in ("FashionMNIST", "fashionmnist"):
        data = load_data(f"{name}:{tmp_path}")
        assert data.train.images.shape == (12, 1, 28, 28)
        assert torch.equal(data.train.images[:, 0], torch.from_numpy(written["train-images-idx3"]))
        assert data.required_test.labels.tolist() == written["t10k-labels-idx1"].tolist()
        assert data.classes[:2] == ("T-shirt/top", "Trouser")


def test_photographs_of_several_sizes_need_one(tmp_path: Path) -> None:
    write_food(tmp_path)
    data = load_data(f"Food101:{tmp_path}", size=(12, 10))
    assert data.train.images.shape == (8, 3, 12, 10)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.classes == ("apple_pie", "waffles")
    assert data.image_shape == (3, 12, 10)
    with pytest.raises(DataError, match=r"Food101\[1\] is 16 x 21 pixels and the first 16 x 20: give one size"):
        load_data(f"Food101:{tmp_path}")


def test_large_sets_are_decoded_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_food(tmp_path)
    source = torchvision.datasets.Food101(str(tmp_path))
    samples = Samples(source, torch.arange(8), (8, 3, 12, 10), (12, 10))
    whole = samples.decoded()
    assert torch.equal(samples.take(torch.tensor([5, 2])).decoded(), whole[[5, 2]])
    assert torch.equal(samples[2:4], whole[2:4])
    assert isinstance(samples.held(), torch.Tensor)
    assert isinstance(Samples(source, torch.arange(8), (8, 3, 4000, 4000), (4000, 4000)).held(), Samples)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("CIFAR10:{root}", r"CIFAR10 does not find its files in .*, and nothing is downloaded: give the folder"),
        ("FashionMNIST:{root}/none", r"there is no folder .*/none with torchvision's FashionMNIST"),
        ("Fashion:{root}", "torchvision has no data set Fashion: give the name of a class"),
        ("EMNIST:{root}", "EMNIST needs split: in Python, give the data set itself to fuse"),
        ("FakeData:{root}", "FakeData reads no folder"),
        ("CocoCaptions:{root}", "CocoCaptions needs annFile"),
    ],
)
def test_what_is_not_there_is_one_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        load_data(name.format(root=tmp_path))
    assert "\n" not in str(caught.value)


def test_known_sets_keep_their_pre_processing(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    assert load_data(f"MNIST:{tmp_path}").preprocessing == Preprocessing(mean=(0.1307,), std=(0.3081,))
    assert load_data(f"MNIST:{tmp_path}", mean=(0.5,), std=(0.5,)).preprocessing.mean == (0.5,)


def test_damaged_files_are_one_sentence(tmp_path: Path) -> None:
    """The files of CIFAR are compared with their MD5: others are not read."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": []}))
    with pytest.raises(DataError, match="corrupted"):
        load_data(f"CIFAR10:{tmp_path}")


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_commands_and_recipes_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "sets")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    body = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*body, nn.Linear(4, 10))\n"
    )
    (tmp_path / "run.yaml").write_text(
        "parents: [a.pt, b.pt]\ndata: FashionMNIST:sets\nout: child.safetensors\npreset: fast\n"
    )
    names: dict[str, object] = {}
    exec((tmp_path / "nets.py").read_text(), names)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.save(names["net"]().state_dict(), tmp_path / f"{name}.pt")  # type: ignore[operator]
    arch = ["--arch", "nets.py:net", "--quiet"]
    assert main(["eval", "a.pt", "--data", "FashionMNIST:sets", *arch]) == 0
    monkeypatch.chdir(tmp_path.parent)
    arch[1] = str(tmp_path / "nets.py:net")
    assert main(["fuse", str(tmp_path / "run.yaml"), *arch]) == 0


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_a_data_set_is_taken_in_python(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    from torchvision.transforms import ToTensor

    data = torchvision.datasets.FashionMNIST(str(tmp_path), transform=ToTensor())
    body = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    parents = [nn.Sequential(*body, nn.Linear(4, 10)).eval() for _ in range(2)]
    result = fuse(parents, "fast", data)
    plain = fuse(parents, "fast", torchvision.datasets.FashionMNIST(str(tmp_path)))  # PIL images
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(result.child(images), plain.child(images))
    assert result.comparison(data).child.count == 12
