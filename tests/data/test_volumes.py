"""Patches are cut out of volumes in n dimensions, with their masks, and whole volumes are held out."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from depfuse.data import DataSet, load_data
from depfuse.data.volumes import LEAST
from depfuse.errors import DataError, DepfuseWarning
from depfuse.tasks.label_kinds import IGNORED


def volume(size: tuple[int, ...], number: int, channels: int = 2) -> np.ndarray:
    """Make a volume in which each place tells where it is, and of which volume."""
    places = np.arange(np.prod(size), dtype=np.float32).reshape(size)
    return np.stack([places, *[np.full(size, number + 0.5, np.float32)] * (channels - 1)])


def mask(size: tuple[int, ...]) -> np.ndarray:
    """Make a mask whose classes depend on the places."""
    return (np.arange(np.prod(size)).reshape(size) % 3).astype(np.int16)


def packed(folder: Path, sizes: list[tuple[int, ...]]) -> Path:
    """Write volumes with masks as one .npz each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        np.savez_compressed(folder / f"case_{number}.npz", data=volume(size, number), seg=mask(size)[None])
    return folder


def quietly(*args: object, **settings: object) -> DataSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        return load_data(*args, **settings)


@pytest.mark.parametrize(("size", "patch"), [((9, 12, 10), (4, 6, 5)), ((20, 30), (8, 8))])
def test_patches_are_parts_of_their_volumes_with_their_masks(
    tmp_path: Path, size: tuple[int, ...], patch: tuple[int, ...]
) -> None:
    data = quietly(packed(tmp_path, [size] * 5), crop=patch)
    assert data.image_shape == (2, *patch)
    assert data.train.sources is not None
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (4 * LEAST // 5, LEAST // 5)
    assert data.train.sources.tolist() == sorted([0, 1, 2, 3] * (LEAST // 5))
    cut, starts = torch.arange(size[-1]), set()
    for image, labels in zip(data.train.images, data.train.labels, strict=True):
        first = int(image[0].flatten()[0])
        starts.add(first)
        start = np.unravel_index(first, size)
        box = tuple(slice(own, own + side) for own, side in zip(start, patch, strict=True))
        assert torch.equal(image[0], torch.from_numpy(volume(size, 0)[0][box]))
        assert torch.equal(labels, torch.from_numpy(mask(size)[box].astype(np.int64)))
        assert len(image[1].unique()) == 1
    assert len(starts) > len(cut)
    seen = {split.images[:, 1].unique().numel() for split in (data.train, data.test)}
    assert seen == {4, 1}, "volumes are held out whole"


def test_places_depend_on_the_seed_and_those_of_tests_do_not(tmp_path: Path) -> None:
    root = packed(tmp_path, [(8, 9, 10)] * 5)
    first, again, other = (quietly(root, crop=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert torch.equal(first.required_test.images, other.required_test.images)


def test_slices_are_cut_for_networks_of_two_dimensions(tmp_path: Path) -> None:
    data = quietly(packed(tmp_path, [(5, 12, 10)] * 2), crop=(8, 8))
    assert data.image_shape == (2, 8, 8)
    assert data.train.labels.shape[1:] == (8, 8)
    image = data.train.images[0, 0]
    assert torch.equal(image - image[0, 0], torch.arange(8.0)[:, None] * 10 + torch.arange(8.0))


def test_layouts_and_names_of_masks(tmp_path: Path) -> None:
    size = (8, 8, 8)
    files = {
        "beside": ("a.npy", "a_seg.npy"),
        "folders": ("images/a.npy", "masks/a.npy"),
        "parts": ("train/images/a.npy", "train/labels/a_mask.npy"),
        "unpacked": ("a.npy", "a.npz"),
    }
    for name, (first, second) in files.items():
        for path, array in ((tmp_path / name / first, volume(size, 0)), (tmp_path / name / second, mask(size))):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npz":
                np.savez(path, data=volume(size, 0), seg=array)
            else:
                np.save(path, array)
        data = quietly(tmp_path / name, crop=4)
        assert data.image_shape == (2, 4, 4, 4), name
        assert data.train.labels is not None, name
        assert int(data.train.sources.max()) == 0, f"{name}: a mask is no volume"
        assert len(data.train) == LEAST, name


def test_axes_are_found_without_masks(tmp_path: Path) -> None:
    for name, shape, found in (
        ("grey", (16, 24, 24), (1, 16, 24, 24)),
        ("flat", (3, 24, 30), (3, 24, 24)),
        ("deep", (5, 8, 16, 16), (5, 8, 16, 16)),
        ("plain", (24, 24), (1, 24, 24)),
    ):
        (tmp_path / name).mkdir()
        for number in range(2):
            np.save(tmp_path / name / f"{number}.npy", np.zeros(shape, np.float32))
        data = quietly(tmp_path / name)
        assert data.image_shape == found, name
        assert data.train.labels is None
        assert data.test is None


def test_numbers_are_as_they_are_but_for_mean_and_deviation(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 8, 8, 8), 100, np.int16))
    data = quietly(tmp_path, crop=4, mean=(40.0, 100.0), std=(20.0, 1.0))
    assert data.train.images.dtype == torch.float32
    assert data.train.images[0].flatten(1).unique(dim=1).tolist() == [[3.0], [0.0]]


def test_what_is_outside_of_a_scan_is_no_class(tmp_path: Path) -> None:
    seg = mask((8, 8, 8))
    seg[0] = -1
    np.savez(tmp_path / "a.npz", data=volume((8, 8, 8), 0), seg=seg[None])
    assert quietly(tmp_path, crop=8).train.labels.unique().tolist() == [IGNORED, 0, 1, 2]


def test_smaller_volumes_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 8, 8), (8, 8, 8), (3, 20, 20)]):
        np.savez(tmp_path / f"case_{number}.npz", data=volume(size, number))
    with pytest.warns(DepfuseWarning, match=r"of 4 x 4 x 4 .*2 volumes .*1 smaller one left out.*case_2.npz"):
        load_data(tmp_path, crop=4)
    with pytest.raises(DataError, match=r"no volume in .* holds a patch of `crop=9,9,30`: .* 8,20,20 at most"):
        quietly(tmp_path, crop=(9, 9, 30))


def spoiled(folder: Path, number: int) -> None:
    """Spoil one of three volumes."""
    path, size = folder / "case_1.npz", (8, 8, 8)
    whole, seg = volume(size, 1), mask(size)
    if number == 0:
        whole[0, 3, 3, 3] = np.nan
        np.savez(path, data=whole, seg=seg)
    elif number == 1:
        np.savez(path, data=whole[:1], seg=seg)
    elif number == 2:
        np.savez(path, data=whole)
    elif number == 3:
        np.savez(path, seg=seg)
    elif number == 4:
        np.savez(path, data=whole, seg=seg[:4])
    elif number == 5:
        np.savez(path, data=whole, seg=seg + 0.5)
    elif number == 6:
        path.write_bytes(path.read_bytes()[:-200])
    elif number == 7:
        np.savez(path, data=np.array([{"a": 1}, None], object))
    elif number == 8:
        np.save(folder / "other.npy", np.zeros(size, np.uint8))
    elif number == 9:
        np.save(folder / "lost_seg.npy", np.zeros(size, np.uint8))
    else:
        np.savez(path, data=whole[0, 0, 0])


@pytest.mark.parametrize(
    ("number", "said"),
    list(enumerate([
        "case_1.npz: data holds numbers that are not finite",
        r"case_0.npz: data has shape \(2, 8, 8, 8\) and .*case_1.npz: data \(1, 8, 8, 8\)",
        "case_1.npz: data has no mask, and others have",
        "case_1.npz holds no volume: call the array of its volume data",
        r"case_1.npz: seg has shape \(4, 8, 8\) and its volume .* give masks of the volumes' size",
        "case_1.npz: seg holds what is no class",
        "case_1.npz cannot be read as a .npz: it is cut off",
        "case_1.npz: data cannot be read: it holds pickled objects",
        "other.npy holds whole numbers and .* does not: is one a mask",
        "lost_seg.npy is a mask without a volume lost.npy",
        "case_1.npz holds no volume",
    ])),
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, number: int, said: str) -> None:
    root = packed(tmp_path, [(8, 8, 8)] * 3)
    spoiled(root, number)
    with pytest.raises(DataError, match=said):
        quietly(root, crop=4)


def test_channels_that_come_last_are_said_to(tmp_path: Path) -> None:
    np.savez(tmp_path / "case.npz", data=np.zeros((8, 9, 3), np.float32), seg=np.zeros((8, 9), np.uint8))
    with pytest.raises(DataError, match="move the channels, which are the last axis, to the front"):
        quietly(tmp_path, crop=4)


def test_what_lies_beside_a_volume_is_not_read(tmp_path: Path) -> None:
    for number in range(3):
        data, mask = np.zeros((1, 8, 8, 8), np.float32), np.zeros((8, 8, 8), np.uint8)
        beside = {"properties": np.array({"spacing": 1}, dtype=object), "names": np.array([["a", "b"]])}
        np.savez(tmp_path / f"case_{number}.npz", data=data, seg=mask, **beside)
    assert quietly(tmp_path, crop=4).train.images.shape[1:] == (1, 4, 4, 4)


def test_what_contradicts_is_refused(tmp_path: Path) -> None:
    root = packed(tmp_path, [(8, 8, 8)])
    with pytest.raises(DataError, match="`size` resizes images"):
        quietly(root, size=(4, 4))
    with pytest.raises(DataError, match="from 1 to"):
        quietly(root, crop=(0, 4, 4))
    with pytest.raises(DataError, match="mean has 3 values, but the images have 2 channels"):
        quietly(root, mean=(0.0, 1.0, 2.0))
