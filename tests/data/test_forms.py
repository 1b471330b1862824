"""Data in the forms that people have: arrays, folders and lists, with labels or without."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depfuse.data import DataSet, Preprocessing, array_files, calibration_loader, load_data, stored_images
from depfuse.data.array_files import ArrayImages
from depfuse.data.image_files import ImageFiles
from depfuse.data.preprocessing import box_of_shape
from depfuse.data.stream import Stream, batches_of
from depfuse.errors import DataError, DepfuseWarning

IMAGES = np.arange(10 * 6 * 5, dtype=np.int64).reshape(10, 6, 5).astype(np.uint8)
LABELS = np.arange(10) % 2


def picture(place: Path, shade: int = 0, size: tuple[int, int] = (5, 4), mode: str = "L") -> Path:
    """Write an image of one shade; size is (width, height)."""
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode == "L" else (shade, 0, 0)).save(place)
    return place


def shades(data: DataSet) -> list[int]:
    return data.train.images[:, 0, 0, 0].tolist()


# Arrays


def test_one_array_of_any_name_is_the_training_images_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", anything=IMAGES)
    data = load_data(tmp_path / "a.npz")
    assert torch.equal(data.train.images, torch.from_numpy(IMAGES)[:, None])
    assert data.train.labels is None
    assert (data.test, data.classes, data.labelled) == (None, (), False)


@pytest.mark.parametrize("layout", [(10, 6, 5), (10, 6, 5, 1), (10, 1, 6, 5)])
def test_an_npy_is_images_in_any_layout(tmp_path: Path, layout: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", IMAGES.reshape(layout))
    assert torch.equal(load_data(tmp_path / "a.npy").train.images, torch.from_numpy(IMAGES)[:, None])


def test_parts_may_be_called_as_other_sets_call_them(tmp_path: Path) -> None:
    arrays = {
        "train_images": IMAGES,
        "train_labels": LABELS[:, None],
        "val_images": IMAGES[:4],
        "val_labels": LABELS[:4],
    }
    np.savez(tmp_path / "a.npz", **arrays)
    data = load_data(tmp_path / "a.npz")
    assert data.train.labels.tolist() == LABELS.tolist()
    assert data.test.labels.tolist() == LABELS[:4].tolist()


def test_training_images_alone_have_no_test_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS)
    data = load_data(tmp_path / "a.npz")
    assert data.test is None
    assert data.classes == ("0", "1")
    with pytest.raises(DataError, match="has no test images"):
        _ = data.required_test


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.eye(2)[LABELS], ("0", "1")),
        (LABELS.astype(float), ("0", "1")),
        (np.array(["ant", "bee"])[LABELS], ("ant", "bee")),
        (np.array([b"ant", b"bee"])[LABELS], ("ant", "bee")),
    ],
)
def test_labels_may_be_one_hot_floats_or_texts(tmp_path: Path, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    np.savez(tmp_path / "a.npz", x_train=IMAGES, y_train=labels)
    data = load_data(tmp_path / "a.npz")
    assert data.train.labels.tolist() == LABELS.tolist()
    assert data.classes == classes
    assert data.by_name == (classes == ("ant", "bee"))


def test_labelled_images_that_nothing_divides_are_divided_class_by_class_and_that_is_said(tmp_path: Path) -> None:
    images = np.repeat(IMAGES, 5, 0)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(50) % 2)
    with pytest.warns(DepfuseWarning, match="has no labelled test set: 10 of 50 images"):
        data, again = (load_data(tmp_path / "a.npz") for _ in range(2))
    assert data.test.labels.bincount().tolist() == [5, 5]
    assert len(data.train) == 40
    assert torch.equal(data.test.images, again.test.images)


def test_sixteen_bits_mean_the_same_as_eight(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES.astype(np.uint16) * 257)
    assert torch.equal(load_data(tmp_path / "a.npy").train.images, torch.from_numpy(IMAGES)[:, None])


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"a": IMAGES, "b": IMAGES}, "several arrays of images, a and b"),
        ({"a": LABELS}, "no array of images"),
        ({"photo": np.zeros((20, 30, 3), np.uint8)}, "is one image"),
        ({"x": IMAGES, "a": LABELS, "b": LABELS}, "either may be the labels"),
        ({"x": IMAGES, "y": LABELS[:-1]}, "10 training images but 9 labels: there must be one per image"),
        ({"x": IMAGES, "y": np.append(LABELS, 0)}, "10 training images but 11 labels: there must be one per image"),
        ({"x_train": IMAGES, "y_train": np.array(["cow"] * 10), "classes": np.array(["ant"])}, "'cow' is none of"),
    ],
)
def test_arrays_that_mean_several_things_are_one_sentence(tmp_path: Path, arrays: dict, sentence: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=sentence):
        load_data(tmp_path / "a.npz")


def test_tensors_are_asked_for_as_arrays(tmp_path: Path) -> None:
    torch.save({"x": torch.from_numpy(IMAGES)}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt is a file of torch\.save, and data are arrays: write them by numpy"):
        load_data(tmp_path / "a.pt")


# Folders


def test_a_folder_of_images_to_any_depth_has_no_labels(tmp_path: Path) -> None:
    for number, name in enumerate(["a b.PNG", "deep/er/ü.jpg.png", "deep/z.Png"]):
        picture(tmp_path / name, number)
    picture(tmp_path / ".hidden" / "no.png")
    picture(tmp_path / "._x.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = load_data(tmp_path)
    assert shades(data) == [0, 1, 2]
    assert data.train.labels is None


def test_links_to_images_and_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "0.png", 7)
    picture(tmp_path / "set" / "1.png", 8)
    os.symlink(tmp_path / "elsewhere" / "0.png", tmp_path / "set" / "0.png")
    os.symlink(tmp_path / "set", tmp_path / "set" / "circle")
    assert shades(load_data(tmp_path / "set")) == [7, 8]


@pytest.mark.parametrize("part", ["val", "valid", "Validation", "test"])
def test_parts_of_a_folder_may_be_called_as_people_call_them(tmp_path: Path, part: str) -> None:
    for name in ("ant", "bee"):
        for where in ("train", part):
            picture(tmp_path / where / name / "0.png")
    data = load_data(tmp_path)
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 1]
    assert data.classes == ("ant", "bee")


def test_a_test_folder_without_labels_yields_to_one_with(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        for part in ("train", "val"):
            picture(tmp_path / part / name / "0.png", 1)
    picture(tmp_path / "test" / "0.png", 2)
    with pytest.warns(DepfuseWarning, match="the test images are those of val; those of test are not used"):
        data = load_data(tmp_path)
    assert data.test.labels.tolist() == [0, 1]


def test_folders_of_classes_without_parts_are_divided(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        for number in range(5):
            picture(tmp_path / name / f"{number}.png")
    with pytest.warns(DepfuseWarning, match="2 of 10 images, 20 % of each class, drawn by seed 0"):
        data = load_data(tmp_path)
    assert (len(data.train), data.test.labels.tolist()) == (8, [0, 1])


def test_an_empty_class_folder_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "train" / "ant").mkdir(parents=True)
    picture(tmp_path / "train" / "bee" / "0.png")
    picture(tmp_path / "test" / "bee" / "0.png")
    data = load_data(tmp_path)
    assert data.classes == ("ant", "bee")
    assert data.test.labels.tolist() == [1]


def test_test_images_alone_cannot_calibrate(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        picture(tmp_path / "val" / name / "0.png")
    data = load_data(tmp_path)
    assert data.image_shape == (1, 4, 5)
    with pytest.raises(DataError, match="has only test images, and no method may see these"):
        calibration_loader(data, 10)


def test_labels_of_pixels_that_are_no_images_are_left_aside_and_that_is_said(tmp_path: Path) -> None:
    """Boxes of a detector, for instance."""
    picture(tmp_path / "images" / "0.png", 3)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.warns(DepfuseWarning, match="there are no masks in labels, and boxes are not read"):
        assert shades(load_data(tmp_path)) == [3]


def test_one_image_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is one image, and several are needed"):
        load_data(picture(tmp_path / "a.png"))


# Lists


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("a.txt", "x y.png\nsub/z.png\n", None),
        ("a.txt", "# a comment\nx y.png 1\n\nsub/z.png\t0\n", [1, 0]),
        ("a.csv", "file,label\nx y.png,bee\nsub/z.png,ant\n", [1, 0]),
        ("a.csv", "\ufeffid;path\n7;x y.png\n8;sub/z.png\n", [7, 8]),
        ("a.csv", "x y.png,1\nsub/z.png,0\n", [1, 0]),
        ("a.csv", "x y.png,10.0\nsub/z.png,2.0\n", [10, 2]),
        ("a.csv", "image_id,label\nx y,1\nsub/z,0\n", [1, 0]),
        ("a.tsv", "image\tcategory\nx y.png\t1\nsub/z.png\t0\n", [1, 0]),
    ],
)
def test_lists_name_images_beside_them(tmp_path: Path, name: str, text: str, labels: list[int] | None) -> None:
    picture(tmp_path / "x y.png", 1)
    picture(tmp_path / "sub" / "z.png", 2)
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = load_data(tmp_path / name)
    assert shades(data) == [1, 2]
    assert (data.train.labels is None) if labels is None else data.train.labels.tolist() == labels


def test_a_table_may_say_what_is_for_tests(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "a.csv").write_text("file,label,split\n0.png,0,train\n1.png,1,train\n2.png,1,test\n")
    data = load_data(tmp_path / "a.csv")
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1], [1])


@pytest.mark.parametrize(
    "text",
    [
        "id,image_path,class_name\n7,p/0.png,dog\n8,p/1.png,cat\n",
        "id;Label;File\r\n7;dog;p/0.png\r\n8;cat;p/1.png\r\n",
        "number,where,kind,label\n7,p\\0.png,2,dog\n8,p\\1.png,2,cat\n",
    ],
)
def test_columns_are_found_by_words_of_their_heads(tmp_path: Path, text: str) -> None:
    for number in range(2):
        picture(tmp_path / "p" / f"{number}.png", number)
    (tmp_path / "a.csv").write_text(text)
    data = load_data(tmp_path / "a.csv")
    assert data.classes == ("cat", "dog")
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1]
    assert data.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "file,dog,cat,owl\n0.png,1,0,0\n1.png,0,1,0\n2.png,1,0,0\n",
        "dog;file;cat;split;owl\n1.0;0.png;0.0;train;0.0\n0.0;1.png;1.0;train;0.0\n1.0;2.png;0.0;test;0.0\n",
    ],
)
def test_columns_of_which_one_is_1_are_classes_in_their_order(tmp_path: Path, text: str) -> None:
    """No image of an owl is there, and owls are a class."""
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "a.csv").write_text(text)
    data = load_data(tmp_path / "a.csv")
    assert (data.classes, data.by_name) == (("dog", "cat", "owl"), False)
    found = {
        shade: label
        for split in (data.train, data.test)
        if split is not None
        for shade, label in zip(split.images[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True)
    }
    assert found == {0: 0, 1: 1, 2: 0}


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "a.csv").write_text("file,cat,dog\n0.png,1,0\n1.png,1,1\n")
    with pytest.warns(
        DepfuseWarning, match="of cat, dog no column is called label, and they are not one 1 beside zeros"
    ):
        assert load_data(tmp_path / "a.csv").train.labels is None


def test_a_list_may_be_utf_16_and_name_files_as_windows_does(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "ü.png", 5)
    picture(tmp_path / "p" / "1.png", 6)
    (tmp_path / "a.txt").write_bytes("p\\ü.png\r\np\\1.png\r\n".encode("utf-16"))
    assert load_data(tmp_path / "a.txt").train.images[:, 0, 0, 0].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "0.png\nmissing.png\n", "line 2: there is no file 'missing.png'"),
        ("a.txt", "", "names no images"),
        ("a.csv", "0.png,1\n0.png\n", "line 2: .* has no label, and others have"),
        ("a.csv", "file,split\n0.png,fold7\n", "fold7 is no part of a data set"),
        ("a.csv", "file,label\n0.png,1\n./0.png,2\n", "line 3: .* has another label or part in line 2"),
        ("a.csv", "file,split\n0.png,train\n0.png,test\n", "line 3: .* has another label or part in line 2"),
    ],
)
def test_lists_that_are_wrong_are_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    picture(tmp_path / "0.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=sentence):
        load_data(tmp_path / name)


def test_a_file_that_a_list_names_twice_is_one_image(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / f"{number}.png", number)
    rows = "".join(f"{number}.png\n" for number in range(10))
    (tmp_path / "a.csv").write_text(f"# both annotators\nfile\n{rows}{rows}")
    with pytest.warns(DepfuseWarning, match="each file is taken once, and 10 lines left out"):
        data = load_data(tmp_path / "a.csv")
    assert sorted(data.train.images[:, 0, 0, 0].tolist()) == list(range(10))


# Sizes


def test_a_size_is_covered_and_the_middle_cropped(tmp_path: Path) -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "0.png")
    Image.fromarray(wide.T).save(tmp_path / "1.png")
    data = load_data(tmp_path, size=(10, 10))
    assert data.train.images.shape == (2, 1, 10, 10)
    assert (data.train.images == 200).all()


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [((10, 30), (5, 5), (0, 10, 10, 10)), ((30, 10), (2, 4), (12, 0, 5, 10)), ((8, 6), (4, 3), (0, 0, 8, 6))],
)
def test_the_box_has_the_proportions_of_the_size(shape: tuple[int, int], size: tuple[int, int], box: tuple) -> None:
    assert box_of_shape(*shape, size) == box


# Many images stay in their files


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setattr(stored_images, "HELD_BYTES", 0)
    for number in range(10):
        for part in ("train", "test"):
            picture(tmp_path / part / "ab"[number % 2] / f"{number}.png", 10 * number)
    return load_data(tmp_path)


def test_many_images_are_decoded_when_they_are_asked_for(many: DataSet) -> None:
    assert isinstance(many.train.images, ImageFiles)
    assert many.train.images.shape == (10, 1, 4, 5)
    assert many.train.images[2:4].tolist() == many.train.images[torch.tensor([2, 3])].tolist()
    assert many.train.images[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80, 10, 30, 50, 70, 90]
    taken = many.train.take(torch.tensor([9, 0]))
    assert (taken.images[:, 0, 0, 0].tolist(), taken.labels.tolist()) == ([90, 0], [1, 0])
    assert calibration_loader(many, 4).images.shape == (4, 1, 4, 5)


def test_a_stream_gives_what_a_loader_of_the_decoded_images_does(many: DataSet) -> None:
    preprocessing = Preprocessing(mean=(0.5,), std=(0.5,))
    stream = batches_of(many.test, preprocessing, batch_size=4)
    held = batches_of(many.test.held(), preprocessing, batch_size=4)
    assert isinstance(stream, Stream)
    assert not isinstance(held, Stream)
    assert len(stream) == len(held) == 3
    for (images, labels), (others, known) in zip(stream, held, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, known)


def test_calibration_takes_no_more_than_its_room_and_says_so(many: DataSet) -> None:
    with pytest.warns(DepfuseWarning, match="5 of 8 calibration images are used"):
        assert calibration_loader(many, 8, room=100.0).count == 5


# Large arrays stay in their files, too


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "HELD_BYTES", 0)
    monkeypatch.setattr(array_files, "_PIECE", 1000)


ARRAYS = {
    "bytes": lambda pixels: pixels,
    "a view of channels first": lambda pixels: pixels.transpose(0, 3, 1, 2),
    "channels first": lambda pixels: pixels.transpose(0, 3, 1, 2).copy(),
    "floats": lambda pixels: pixels.astype(np.float32) / 255,
    "16 bits of another machine": lambda pixels: (pixels.astype(np.uint16) * 257).astype(">u2"),
    "Fortran's order": np.asfortranarray,
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("form", ["npy", "npz", "compressed"])
@pytest.mark.usefixtures("in_pieces")
@pytest.mark.filterwarnings("error")
def test_an_array_read_in_pieces_is_the_whole(tmp_path: Path, kind: str, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 7, 6, 3), np.uint8)
    wanted = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    path = tmp_path / ("a.npy" if form == "npy" else "a.npz")
    {"npy": np.save, "npz": np.savez, "compressed": np.savez_compressed}[form](path, ARRAYS[kind](pixels))
    split = load_data(path).train
    chosen = torch.tensor([39, 0, 7])
    assert isinstance(split.images, ArrayImages) is (form != "compressed" and kind != "Fortran's order")
    assert torch.equal(split.images[:], wanted)
    assert torch.equal(split.take(chosen).take(slice(1, 3)).held().images, wanted[chosen[1:]])


@pytest.mark.usefixtures("in_pieces")
def test_what_is_wrong_in_a_large_array_is_said_when_it_is_loaded(tmp_path: Path) -> None:
    pixels = np.zeros((40, 7, 6, 3), np.float32)
    pixels[39] = 2
    np.save(tmp_path / "a.npy", pixels)
    with pytest.raises(DataError, match=r"a.npy holds floats outside \[0, 1\]"):
        load_data(tmp_path / "a.npy")


@pytest.mark.usefixtures("in_pieces")
def test_an_array_that_is_cut_off_later_is_one_sentence(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((40, 7, 6, 3), np.uint8))
    data = load_data(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.npy can no longer be read"):
        calibration_loader(data, 4)


# What is no data


def test_folders_that_are_not_used_are_named(tmp_path: Path) -> None:
    for part in ("train", "dev", "extra"):
        for number in range(4):
            picture(tmp_path / part / "ab"[number % 2] / f"{number}.png", number)
    with pytest.warns(DepfuseWarning, match="the images of extra are not used"):
        data = load_data(tmp_path)
    assert (len(data.train), len(data.required_test)) == (4, 4)


def test_files_of_other_kinds_are_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "0.png")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(tmp_path / "p" / "0.png", "p/0.png")
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        archive.add(tmp_path / "p")
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    np.savez(tmp_path / "p.npz", np.zeros((4, 5, 5), np.uint8))
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:-30])
    for name, said in (
        ("p.zip", "an archive without arrays: unpack it"),
        ("p.tar", "an archive of files: unpack it"),
        ("p.parquet", r"no data that can be read: give a \.npz"),
        ("p.npz", "cut off"),
    ):
        with pytest.raises(DataError, match=said):
            load_data(tmp_path / name)


@pytest.mark.parametrize(
    ("images", "file", "content"),
    [
        ("train/images/0.png valid/images/1.png", "train/labels/0.txt", "0 0.5 0.5 0.2 0.2"),
        ("train/0.png valid/1.png", "valid/1.txt", "0 0.5 0.5 0.2 0.2"),
        ("train/0.png valid/1.png", "train/0.xml", "<annotation/>"),
        ("train/0.png valid/1.png", "train/_annotations.coco.json", '{"images": [], "annotations": []}'),
        ("train2017/0.png val2017/1.png", "annotations/instances.json", '{"annotations": [{"bbox": [0, 0, 1, 1]}]}'),
        ("0.png 1.png", "boxes.csv", "filename,class,xmin,ymin,xmax,ymax\n0.png,cat,0,0,4,4"),
        ("0.png 1.png", "labels.csv", "file_name,label\n0.png,cat"),
    ],
    ids=["yolo", "darknet", "voc", "coco of a part", "coco", "csv", "labels"],
)
def test_annotations_beside_images_are_said_not_to_be_read(
    tmp_path: Path, images: str, file: str, content: str
) -> None:
    for place in [*images.split(), file]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    for place in images.split():
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    (tmp_path / file).write_text(content)
    with pytest.warns(DepfuseWarning, match="not read") as said:
        found = load_data(str(tmp_path))
    assert [str(own.message) for own in said] == [str(own.message) for own in said if file in str(own.message)]
    assert found.classes == ()
    assert len(found.train) == (1 if "/" in images else 2)


def test_other_files_beside_images_need_no_word(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    for name, content in {"README.txt": "photographs", "meta.json": "{}", "sizes.csv": "width,height\n8,8"}.items():
        (tmp_path / name).write_text(content)
    assert len(load_data(str(tmp_path)).train) == 2
