from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from depfuse.data import (
    Augmentation,
    DataSet,
    Loader,
    Preprocessing,
    Split,
    calibration_loader,
    load_data,
    parse_labels,
    select_labels,
    select_share,
)
from depfuse.data.augment import change, draw_changes
from depfuse.data.floats import to_floats
from depfuse.errors import DataError, DepfuseWarning


def counts(split: Split, classes: int = 10) -> list[int]:
    return split.labels.bincount(minlength=classes).tolist()


# Digits


def test_digits_are_split_once_and_for_all(digits: DataSet) -> None:
    assert digits.train.images.shape == (1297, 1, 8, 8)
    assert digits.test.images.shape == (500, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert int(digits.train.images.max()) == 255
    assert min(counts(digits.test)) >= 48
    found = hashlib.sha256(digits.test.images.numpy().tobytes()).hexdigest()
    assert found.startswith(DIGITS_TEST_DIGEST), "the published accuracies belong to another test set"


DIGITS_TEST_DIGEST = "322404a7068b556c"


def test_digits_are_scikit_learns_in_its_stratified_split(digits: DataSet) -> None:
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    parts = train_test_split(np.arange(len(images)), test_size=500, stratify=found.target, random_state=0)
    for split, part in zip((digits.train, digits.test), parts, strict=True):
        assert np.array_equal(split.images.numpy(), images[part])
        assert np.array_equal(split.labels.numpy(), found.target[part])


def test_digits_preprocessing_is_that_of_their_training_images(digits: DataSet) -> None:
    pixels = digits.train.images.double() / 255
    assert digits.preprocessing.mean == pytest.approx((float(pixels.mean()),), abs=1e-4)
    assert digits.preprocessing.std == pytest.approx((float(pixels.std()),), abs=1e-4)
    seen = to_floats(digits.train.images, digits.preprocessing)
    assert float(seen.mean()) == pytest.approx(0, abs=1e-3)
    assert float(seen.std()) == pytest.approx(1, abs=1e-3)


# Pre-processing


@pytest.mark.parametrize("channels_last", [False, True])
def test_preprocessing_is_scale_then_mean_and_std(channels_last: bool) -> None:
    images = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = to_floats(images, Preprocessing(mean=mean, std=std), channels_last=channels_last)
    shape = (3, 1, 1)
    wanted = (images.double() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_preprocessing_without_anything_scales_to_one() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found = to_floats(images, Preprocessing())
    assert float(found.min()) == 0
    assert float(found.max()) == pytest.approx(1)


def test_preprocessing_resizes_without_aliasing() -> None:
    stripes = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    stripes[..., ::2] = 200
    found = to_floats(stripes, Preprocessing(size=(4, 5)))
    assert found.shape == (1, 1, 4, 5)
    assert float(found.std()) < 0.05


@pytest.mark.parametrize("shape", [(3, 1, 16), (1, 16, 1), (1, 1, 1)])
def test_images_of_one_row_are_preprocessed_as_any(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=np.arange(8) % 2)
    data = load_data(tmp_path / "a.npz", mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    images, _ = next(iter(Loader(data.train, data.preprocessing, batch_size=8)))
    torch.testing.assert_close(images, (data.train.images.float() / 255 - 0.5) / 0.25)
    assert torch.equal(data.example(), images[:1])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "mean has 2 values and std 1"),
        ({"std": (0.0,)}, "must be positive"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"size": (0, 3)}, "must be positive"),
    ],
)
def test_preprocessing_that_contradicts_itself_is_one_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data("digits", **settings)


def test_means_for_another_number_of_channels_are_refused() -> None:
    with pytest.raises(DataError, match=r"mean has 3 values, but the images have 1 channel: give 1$"):
        load_data("digits", mean=(0.1, 0.2, 0.3), std=(1, 1, 1))


def test_preprocessing_is_overridden(digits: DataSet) -> None:
    data = load_data("digits", mean=(0.5,), size=(16, 12))
    assert data.preprocessing == Preprocessing(size=(16, 12), mean=(0.5,), std=digits.preprocessing.std)
    assert data.image_shape == (1, 16, 12)
    assert data.example(3).shape == (3, 1, 16, 12)


# Files


def arrays(**changed: object) -> dict[str, object]:
    generator = np.random.default_rng(0)
    made: dict[str, object] = {
        "x_train": generator.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": generator.integers(0, 256, (6, 6, 5, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    made.update(changed)
    return {key: value for key, value in made.items() if value is not None}


def written(folder: Path, **changed: object) -> Path:
    np.savez(folder / "data.npz", **arrays(**changed))
    return folder / "data.npz"


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_npz_layouts_and_kinds_mean_the_same(tmp_path: Path, layout: str, kind: str) -> None:
    plain = arrays()
    changed = {}
    for key in ("x_train", "x_test"):
        images = plain[key]
        images = {"NHWC": images, "NCHW": images.transpose(0, 3, 1, 2), "NHW": images[..., 0]}[layout]
        changed[key] = images if kind == "uint8" else (images / 255).astype(np.float32)
    data = load_data(written(tmp_path, **changed))
    wanted = torch.from_numpy(plain["x_train"]).permute(0, 3, 1, 2)
    assert torch.equal(data.train.images, wanted[:, :1] if layout == "NHW" else wanted)
    assert data.preprocessing == Preprocessing()
    assert data.classes == ("0", "1", "2")


def test_npz_names_its_classes(tmp_path: Path) -> None:
    data = load_data(written(tmp_path, classes=np.array(["ant", "bee", "cat", "dog"])))
    assert data.classes == ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"x_test": None}, "has no x_test, the images of y_test"),
        ({"y_train": np.arange(11) % 3}, "12 training images but 11 labels"),
        ({"y_train": np.arange(12) - 1}, "training label -1 is out of range"),
        ({"y_test": np.arange(6), "classes": np.array(["a", "b", "c"])}, "test label 5 is out of range"),
        ({"y_test": np.arange(6) / 2}, "the labels of training and test images are of different kinds"),
        ({"y_test": np.array(["a", "b"] * 3).reshape(3, 2)}, "labels are whole numbers"),
        (
            {"x_train": np.zeros((0, 6, 5, 3), np.uint8), "y_train": np.zeros(0, int)},
            "there are no training images",
        ),
        ({"x_test": np.zeros((6, 6, 6, 3), np.uint8)}, "must have the same shape"),
        ({"x_train": np.full((12, 6, 5, 3), 1.5)}, r"floats outside \[0, 1\]"),
        ({"x_train": np.full((12, 6, 5, 3), np.nan)}, r"floats outside \[0, 1\]"),
        ({"x_train": np.zeros((12, 6, 5, 3), np.int64)}, "is int64: images are uint8"),
        ({"x_train": np.zeros((12, 30), np.uint8)}, r"has shape \(12, 30\)"),
        ({"classes": np.array([{"a": 1}], object)}, "it holds pickled objects"),
    ],
)
def test_npz_that_is_wrong_is_one_sentence(tmp_path: Path, changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        load_data(written(tmp_path, **changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_npz_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as a \.npz"):
        load_data(tmp_path / "data.npz")


def test_a_truncated_npz_is_one_sentence(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(DataError, match=r"cannot be read as a \.npz"):
        load_data(file)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("digit", "did you mean digits"),
        ("nowhere.npz", "is no data set, file or folder"),
        ("https://example.org/photos.zip", "is an address, and nothing is downloaded"),
    ],
)
def test_data_that_are_not_there_are_one_sentence(spec: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data(spec)


def folder_of_images(root: Path, mode: str = "RGB") -> Path:
    for part, many in (("train", 3), ("test", 2)):
        for number, name in enumerate(("bee", "ant")):
            (root / part / name).mkdir(parents=True)
            for index in range(many):
                shade = 10 * number + index
                Image.new(mode, (5, 4), shade if mode == "L" else (shade, 0, 0)).save(
                    root / part / name / f"{index}.png"
                )
    return root


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_a_folder_of_images_by_class_is_read(tmp_path: Path, mode: str, channels: int) -> None:
    data = load_data(folder_of_images(tmp_path, mode))
    assert data.classes == ("ant", "bee")
    assert data.train.images.shape == (6, channels, 4, 5)
    assert data.train.images[:, 0, 0, 0].tolist() == [10, 11, 12, 0, 1, 2]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_images_of_many_sizes_need_one(tmp_path: Path) -> None:
    folder_of_images(tmp_path)
    Image.new("RGB", (7, 7)).save(tmp_path / "train" / "ant" / "9.png")
    with pytest.raises(DataError, match=r"scale them all to one size, or give one with `size`, height and width"):
        load_data(tmp_path)
    assert load_data(tmp_path, size=(8, 6)).train.images.shape == (7, 3, 8, 6)


def test_a_folder_without_images_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    with pytest.raises(
        DataError, match=r"holds no images: it needs images, CLASS/IMAGE, or train/CLASS.*; or volumes, in \.npy"
    ):
        load_data(tmp_path)


def test_a_test_class_that_is_never_trained_is_named(tmp_path: Path) -> None:
    (folder_of_images(tmp_path) / "test" / "cow").mkdir()
    with pytest.raises(DataError, match="test class cow has no folder under train/"):
        load_data(tmp_path)


def test_turns_and_further_frames_that_are_not_read_are_said(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path, "L") / "train" / "ant"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("L", (5, 4)).save(folder / "0.jpg", exif=exif)
    exif[ExifTags.Base.Orientation] = 1
    Image.new("L", (5, 4)).save(folder / "1.jpg", exif=exif)
    Image.new("L", (5, 4)).save(folder / "stack.tif", save_all=True, append_images=[Image.new("L", (5, 4), 9)])
    with pytest.warns(DepfuseWarning) as caught:
        load_data(tmp_path)
    said = [str(one.message) for one in caught]
    assert len(said) == 2
    assert "1 of 13 images" in said[0]
    assert "their EXIF says, such as train/ant/0.jpg: all are taken as stored" in said[0]
    assert "have several frames or pages, such as train/ant/stack.tif: the first of each is taken" in said[1]


@pytest.mark.parametrize("content", [b"no image", b"\x89PNG\r\n\x1a\n"])
def test_an_image_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (folder_of_images(tmp_path) / "train" / "ant" / "1.png").write_bytes(content)
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image"):
        load_data(tmp_path)


def test_offline_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", offline)
    with pytest.raises(DataError, match=r"cifar10 cannot be downloaded .*: go online, or give a \.npz file"):
        load_data("cifar10", root=tmp_path)


def test_downloaded_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchvision gives for CIFAR and for MNIST, without its downloads."""
    from torchvision import datasets

    class Cifar:
        classes = [str(label) for label in range(100)]  # noqa: RUF012
        data = np.zeros((4, 32, 32, 3), np.uint8)
        targets = [0, 1, 2, 99]  # noqa: RUF012

        def __init__(self, *_: object, **__: object) -> None: ...

    class Mnist(Cifar):
        classes = [str(label) for label in range(10)]  # noqa: RUF012
        data = torch.zeros(4, 28, 28, dtype=torch.uint8)
        targets = torch.tensor([0, 1, 2, 9])

    monkeypatch.setattr(datasets, "CIFAR100", Cifar)
    monkeypatch.setattr(datasets, "MNIST", Mnist)
    assert load_data("cifar100", root=tmp_path).image_shape == (3, 32, 32)
    assert load_data("mnist", root=tmp_path).image_shape == (1, 28, 28)


# Loader


def seen(loader: Loader) -> torch.Tensor:
    return torch.cat([labels for _, labels in loader])


def numbered(count: int) -> Split:
    return Split(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count))


@pytest.mark.parametrize(("count", "batch", "sizes"), [(10, 4, [4, 3, 3]), (8, 4, [4, 4]), (9, 8, [5, 4]), (3, 8, [3])])
def test_batches_are_even_and_hold_every_image_once(count: int, batch: int, sizes: list[int]) -> None:
    loader = Loader(numbered(count), Preprocessing(), batch_size=batch)
    assert [len(labels) for _, labels in loader] == sizes
    assert len(loader) == len(sizes)
    assert loader.count == count
    assert seen(loader).tolist() == list(range(count))


def test_drop_last_gives_whole_batches_only() -> None:
    loader = Loader(numbered(10), Preprocessing(), batch_size=4, drop_last=True)
    assert [len(labels) for _, labels in loader] == [4, 4]
    assert len(Loader(numbered(3), Preprocessing(), batch_size=4, drop_last=True)) == 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first, second = (Loader(numbered(50), Preprocessing(), batch_size=8, shuffle=True, seed=5) for _ in range(2))
    orders = [seen(first) for _ in range(3)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    second.epoch = 2
    assert torch.equal(seen(second), orders[2])
    assert first.epoch == second.epoch == 3
    other = Loader(numbered(50), Preprocessing(), batch_size=8, shuffle=True, seed=6)
    assert not torch.equal(seen(other), orders[0])


def test_without_shuffle_the_order_stays() -> None:
    loader = Loader(numbered(10), Preprocessing(), batch_size=4)
    assert torch.equal(seen(loader), seen(loader))
    assert loader.epoch == 0


def test_loader_keeps_bytes(digits: DataSet) -> None:
    assert Loader(digits.train, digits.preprocessing, batch_size=100).images.dtype == torch.uint8


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_that_is_none_is_refused(batch_size: int) -> None:
    with pytest.raises(DataError, match="batch size"):
        Loader(numbered(3), Preprocessing(), batch_size=batch_size)


def test_calibration_images_are_drawn_at_random_from_the_training_images(digits: DataSet) -> None:
    in_class_order = torch.argsort(digits.train.labels, stable=True)
    data = DataSet("sorted", digits.classes, digits.train.take(in_class_order), digits.test, digits.preprocessing)
    loader = calibration_loader(data, 200, batch_size=64, seed=1)
    labels = seen(loader)
    assert loader.count == len(labels) == 200
    assert min(labels.bincount(minlength=10)) >= 8
    assert torch.equal(labels, seen(calibration_loader(data, 200, batch_size=64, seed=1)))
    assert not torch.equal(labels, seen(calibration_loader(data, 200, batch_size=64, seed=2)))
    drawn = {bytes(image.numpy().tobytes()) for image in loader.images}
    known = {bytes(image.numpy().tobytes()) for image in data.train.images}
    assert drawn <= known
    assert len(drawn) > 195


def test_calibration_takes_what_there_is(digits: DataSet) -> None:
    assert calibration_loader(digits, 10_000).count == 1297


@pytest.mark.parametrize(("count", "words"), [(0, "0 calibration images are"), (1, "1 calibration image is")])
def test_too_few_calibration_images_are_refused(digits: DataSet, count: int, words: str) -> None:
    with pytest.raises(DataError, match=f"{words} too few"):
        calibration_loader(digits, count)


# Augmentation


def test_flips_and_shifts_are_those_that_were_drawn() -> None:
    images = torch.randint(1, 256, (40, 3, 6, 7), dtype=torch.uint8)
    augment = Augmentation(flip=True, translate=2)
    drawn = draw_changes(augment, 40, (6, 7), torch.Generator().manual_seed(0))
    found = change(augment, images, drawn)
    assert set(drawn[:, 0].tolist()) == {0, 1}
    assert set(drawn[:, 1].tolist()) == set(range(5))
    for image, (flip, down, right, _, _), result in zip(images, drawn.tolist(), found, strict=True):
        padded = torch.zeros(3, 10, 11, dtype=torch.uint8)
        padded[:, 2:8, 2:9] = image
        window = padded[:, down : down + 6, right : right + 7]
        assert torch.equal(result, window.flip(2) if flip else window)


def test_volumes_are_shifted_along_every_axis_and_mirrored_where_that_is_said() -> None:
    volumes = torch.randn(40, 2, 4, 6, 7)
    augment = Augmentation(flip=True, translate=1)
    drawn = draw_changes(augment, 40, (4, 6, 7), torch.Generator().manual_seed(0))
    found = change(augment, volumes, drawn)
    assert set(drawn[:, 5].tolist()) == set(range(3))
    for volume, (flip, down, right, _, _, deep), result in zip(volumes, drawn.tolist(), found, strict=True):
        padded = torch.zeros(2, 6, 8, 9)
        padded[:, 1:5, 1:7, 1:8] = volume
        window = padded[:, deep : deep + 4, down : down + 6, right : right + 7]
        assert torch.equal(result, window.flip(3) if flip else window)
    loader = Loader(Split(volumes), batch_size=10)
    assert loader.suited_augmentation == Augmentation(translate=1)
    assert loader.mirroring(True).suited_augmentation == Augmentation(flip=True, translate=1)
    seen = torch.cat([batch for batch, _ in loader.augmented(loader.suited_augmentation, 1)])
    assert seen.shape == volumes.shape
    assert not torch.equal(seen, volumes)
    for still in (Split(volumes.long()), Split(volumes[:, :, :1])):  # whole numbers, and slices, are no volumes
        assert not Loader(still, batch_size=10).suited_augmentation


def test_cutout_blacks_one_square_out() -> None:
    images = torch.full((200, 1, 8, 8), 255, dtype=torch.uint8)
    augment = Augmentation(cutout=3)
    found = change(augment, images, draw_changes(augment, 200, (8, 8), torch.Generator().manual_seed(0)))
    gone = (found == 0).flatten(1).sum(1)
    assert gone.max() == 9  # whole inside
    assert gone.min() == 4  # a corner of the image is the centre
    assert len(found.unique(dim=0)) > 30


def test_augmented_epochs_repeat_with_the_seed_and_differ_from_each_other(digits: DataSet) -> None:
    def epochs() -> list[torch.Tensor]:
        loader = Loader(
            digits.train.take(torch.arange(64)),
            Preprocessing(),
            batch_size=64,
            shuffle=True,
            augment=Augmentation(flip=True, translate=1, cutout=2),
            seed=3,
        )
        return [next(iter(loader))[0] for loader.epoch in range(3)]

    first, again = epochs(), epochs()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].sort(0).values, first[1].sort(0).values)


# Parts by label


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("0-4", {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}),
        ("7,1-2:0.5", {1: 0.5, 2: 0.5, 7: 1}),
        ("0-1:0.9, 2-3:0.1", {0: 0.9, 1: 0.9, 2: 0.1, 3: 0.1}),
        ("5-5:1e-1", {5: 0.1}),
    ],
)
def test_label_shares_are_read(text: str, shares: dict[int, float]) -> None:
    assert parse_labels(text) == shares


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not like 3, 0-4 or 0-4:0.9"),
        ("a-b", "is not like"),
        ("-1", "is not like"),
        ("4-0", "4-0 runs backwards"),
        ("0-4,3", "label 3 stands twice"),
        ("0-4:0", r"outside \(0, 1\]"),
        ("0-4:1.5", r"outside \(0, 1\]"),
        ("0:1e", "'1e' is no number"),
        ("0-99999999999", "more classes than"),
    ],
)
def test_label_shares_that_make_no_sense_are_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        parse_labels(text)


def test_skewed_labels_keep_their_shares_and_all_test_images(digits: DataSet) -> None:
    skewed, classes = select_labels(digits, parse_labels("0-4,5-9:0.1"), seed=1)
    whole = counts(digits.train)
    assert counts(skewed.train) == whole[:5] + [round(0.1 * many) for many in whole[5:]]
    assert classes == list(range(10))
    assert counts(skewed.test) == counts(digits.test)
    again, _ = select_labels(digits, parse_labels("0-4:0.5,5-9:0.1"), seed=1)
    of_nine = [split.train.images[split.train.labels == 9] for split in (skewed, again)]
    assert torch.equal(*of_nine), "one class's images depend on another's share"


def test_some_labels_alone_are_renumbered(digits: DataSet) -> None:
    part, classes = select_labels(digits, parse_labels("5-9"))
    assert classes == [5, 6, 7, 8, 9]
    assert part.classes == ("5", "6", "7", "8", "9")
    assert counts(part.train, 5) == counts(digits.train)[5:]
    assert counts(part.test, 5) == counts(digits.test)[5:]


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [({10: 1.0}, "has labels 0 to 9, not 10"), ({3: 0.001}, "class 3 without a training image")],
)
def test_labels_that_cannot_be_selected_are_named(digits: DataSet, shares: dict[int, float], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        select_labels(digits, shares)


def image_set(data: DataSet) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in data.train.images)


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_shares_are_disjoint_and_hold_everything(digits: DataSet, alpha: float | None) -> None:
    shares = [select_share(digits, number, 4, alpha=alpha, seed=2) for number in range(4)]
    assert sorted(image for share in shares for image in image_set(share)) == image_set(digits)
    spread = torch.tensor([counts(share.train) for share in shares]).float()
    if alpha is None:
        assert (spread.max(0).values - spread.min(0).values).max() <= 1
    else:
        assert (spread.max(0).values - spread.min(0).values).mean() > 30
    assert torch.equal(shares[1].train.labels, select_share(digits, 1, 4, alpha=alpha, seed=2).train.labels)


def test_parts_that_do_not_exist_are_refused(digits: DataSet) -> None:
    with pytest.raises(DataError, match="share 4 of 4 does not exist"):
        select_share(digits, 4, 4)
    with pytest.raises(DataError, match="must be positive"):
        select_share(digits, 0, 4, alpha=0.0)
