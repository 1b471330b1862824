"""Squares are cut out of photographs of any size, whole photographs are held out, and small ones are left out."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from depfuse.data import load_data
from depfuse.data.crops import CROPS, Crops
from depfuse.errors import DataError, DepfuseWarning


def written(path: Path, height: int, width: int, number: int) -> None:
    """Write an image in which each pixel tells its row, its column and the image's number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, np.full_like(rows, number)], axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def folder(root: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    for number, (name, (height, width)) in enumerate(sizes.items()):
        written(root / name, height, width, number)
    return root


def quietly(*args: object, **settings: object):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        return load_data(*args, **settings)


def test_squares_are_parts_of_their_photographs(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a.png": (40, 100), "deep/b.png": (16, 16), "deep/c.png": (33, 17)})
    data = quietly(root, crop=16)
    images = data.train.images
    assert isinstance(images, Crops)
    assert data.train.labels is None
    assert data.test is None
    assert images.photographs.tolist() == [0] * (2 * 6) + [1] + [2] * 2
    assert data.image_shape == (3, 16, 16)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    places = set()
    for square, number in zip(images.decoded().int(), images.photographs, strict=True):
        top, left = int(square[0, 0, 0]), int(square[1, 0, 0])
        assert torch.equal(square[:2], torch.stack([rows + top, columns + left]).int())
        assert (square[2] == number).all()
        places.add((int(number), top, left))
    assert len(places) > 10


def test_places_depend_on_nothing_but_the_files(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a.png": (60, 70), "b.png": (50, 90)})
    torch.manual_seed(1)
    first = quietly(root, crop=16).train.images
    torch.manual_seed(2)
    assert quietly(root, crop=16).train.images.boxes == first.boxes
    assert torch.equal(first[torch.tensor([5, 1])], first.decoded()[[5, 1]])


def test_no_more_than_calibration_takes_by_default(tmp_path: Path) -> None:
    root = folder(tmp_path, {f"{number}.png": (200, 200) for number in range(3)})
    assert len(quietly(root, crop=4).train) == 3 * -(-CROPS // 3)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(300, 200), (90, 120), (80, 80)], 64),
        ([(32, 33)] * 3, 32),
        ([(50, 50), (45, 99), (300, 300)], 40),
        ([(8, 90), *[(30, 99)] * 9], 24),
        ([(7, 9)], 7),
    ],
)
def test_a_side_is_found(tmp_path: Path, sizes: list[tuple[int, int]], side: int) -> None:
    root = folder(tmp_path, {f"{number}.png": size for number, size in enumerate(sizes)})
    assert quietly(root, crop="auto").image_shape == (3, side, side)


def test_smaller_photographs_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a.png": (40, 40), "icon.png": (8, 50), "z.png": (16, 16)})
    with pytest.warns(DepfuseWarning, match=r"5 squares of 16 x 16 .* 2 photographs .*1 smaller one left out.*icon"):
        data = load_data(root, crop=16)
    assert {Path(path).name for path, _, _ in data.train.images.boxes} == {"a.png", "z.png"}
    with pytest.raises(DataError, match=r"no image in .* has 41 x 41 pixels: give a smaller `crop`, 40 at most"):
        load_data(root, crop=41)


def test_parts_stay_apart_and_classes_are_none(tmp_path: Path) -> None:
    names = ["train/cat/a.png", "train/dog/b.png", "test/cat/c.png"]
    data = quietly(folder(tmp_path, dict.fromkeys(names, (20, 20))), crop=16)
    assert (len(data.train), len(data.test), data.classes, data.labelled) == (2, 1, (), False)


def test_what_contradicts_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a.png": (40, 40)})
    with pytest.raises(DataError, match="give one of the two"):
        load_data(root, crop=16, size=(16, 16))
    with pytest.raises(DataError, match="digits is none"):
        load_data("digits", crop=16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(tmp_path / "empty", crop=16)


def test_turns_and_further_frames_that_are_not_read_are_said(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a.png": (20, 40), "b.png": (30, 30)})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(root / "turned.jpg", exif=exif)
    Image.new("RGB", (40, 20)).save(root / "stack.tif", save_all=True, append_images=[Image.new("RGB", (40, 20), 9)])
    with pytest.warns(DepfuseWarning) as caught:
        load_data(root, crop=20)
    turned, several, _ = [str(one.message) for one in caught]
    assert "1 of 4 images" in turned
    assert "as their EXIF says, such as turned.jpg: all are taken as stored" in turned
    assert "have several frames or pages, such as stack.tif: the first of each is taken" in several
