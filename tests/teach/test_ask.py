"""Choosing images to label, and using their labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_parents import small_files, small_parents
from PIL import Image

import depfuse
from depfuse.cli import main
from depfuse.cli.inputs import read_inputs
from depfuse.cli.options import DataOptions
from depfuse.data import Split, calibration_loader, load_data
from depfuse.data.loader import calibration_order
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError, RecipeError
from depfuse.io.label_rows import TABLE
from depfuse.io.label_table import digest, read_table, write_table
from depfuse.teach.ask import doubt, label_weight, most_telling

TEXTS = [(str(number),) for number in range(10)]


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asked") / "to-label"
    assert main(["ask", *small_files(), "--data", "digits", "--number", "30", "--out", str(folder), "--quiet"]) == 0
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def filled(folder: Path, out: Path, labels) -> Path:
    """Write the table with labels: of number (row) by a function, nothing where that gives None."""
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "number", "image", "label"])
        writer.writeheader()
        for place, row in enumerate(rows(folder)):
            writer.writerow({**row, "label": labels(place, int(row["number"])) or ""})
    return out


def test_doubt_is_about_classes_or_whose_image_it_is():
    probabilities = torch.tensor([[0.45, 0.45, 0.05, 0.05], [0.45, 0.05, 0.45, 0.05], [0.9, 0.0, 0.1, 0.0]])
    torch.testing.assert_close(doubt(probabilities), torch.tensor([1.0, 1.0, 0.2]))
    sets = LabelSets.create([(0, 1), (2, 3)])
    torch.testing.assert_close(doubt(probabilities, sets), torch.tensor([0.2, 1.0, 0.2]))


class Fixed(torch.nn.Module):
    """Scores that are the images."""

    def forward(self, images):
        return images.flatten(1)


def test_images_are_chosen_that_are_uncertain_and_differ_from_each_other():
    sure, unsure = [[8.0, 0, 0]] * 50, [[1.0, 1, 0]] * 20 + [[0, 1.0, 1]] * 5 + [[1.0, 0, 1]] * 5
    images = torch.tensor(sure + unsure)[:, :, None, None]
    loader = depfuse.data.Loader(Split(images), batch_size=20)
    found = most_telling(Ensemble([Fixed()], (1.0,)), loader, 3, None, mirrored=False)
    kinds = sorted({0 if n < 50 else 1 if n < 70 else 2 if n < 75 else 3 for n in found.tolist()})
    assert kinds == [1, 2, 3]
    with pytest.raises(DataError, match="81 images to label cannot be chosen of 80"):
        most_telling(Ensemble([Fixed()], (1.0,)), loader, 81, None, mirrored=False)


def test_chosen_images_are_those_that_the_parents_together_are_least_certain_of(data):
    loader = calibration_loader(data, 600)
    parents = small_parents()
    found = depfuse.ask(parents, loader, 40)
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == 40
    assert torch.equal(found, depfuse.ask(parents, loader, 40))
    with torch.no_grad():
        outputs = torch.cat([sum(parent(images).softmax(1) for parent in parents) / 2 for images, _ in loader])
    unknown = doubt(outputs)
    assert unknown[found].mean() > unknown.mean() + 0.03
    with pytest.raises(RecipeError, match="of task regression"):
        depfuse.ask(
            [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1)).eval() for _ in range(2)],
            torch.rand(50, 1, 2, 2),
            5,
        )


def test_the_table_holds_pictures_of_the_training_images_and_no_label(asked, data):
    found = rows(asked)
    assert len(found) == 30
    assert {row["label"] for row in found} == {""}
    for row in found[:5]:
        pixels = np.asarray(Image.open(asked / row["file"]))
        original = data.train.images[int(row["number"])]
        assert np.array_equal(pixels, original[0].numpy())
        assert row["image"] == digest(original)


def test_image_files_are_copied_as_they_are(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(folder / f"{number}.jpg")
    split = load_data(str(folder)).train
    write_table(tmp_path / "out", split, torch.tensor([3, 7]))
    assert [row["number"] for row in rows(tmp_path / "out")] == ["3", "7"]
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_labels_come_first_in_the_calibration_and_no_other_label_is_kept(asked, data, tmp_path):
    truth = data.train.required_labels
    table = filled(asked, tmp_path / "some.csv", lambda place, number: str(int(truth[number])) if place % 2 else None)
    inputs = read_inputs(
        [Path(file) for file in small_files()],
        None,
        DataOptions(data="digits"),
        torch.device("cpu"),
        fused=True,
        judged=True,
    )
    other, count = inputs.with_labels_of(table, seed=5)
    assert count == 15
    loader = calibration_loader(other.data, 200, seed=5)
    numbers = [int(row["number"]) for place, row in enumerate(rows(asked)) if place % 2]
    assert torch.equal(loader.images[:15], data.train.images[numbers])
    assert torch.equal(loader.labels[:15], truth[numbers])
    assert set(loader.labels[15:].tolist()) == {-1}
    pixels = {tuple(image.flatten().tolist()) for image in data.train.images}
    assert {tuple(image.flatten().tolist()) for image in other.data.train.images} == pixels
    assert int((other.data.train.labels >= 0).sum()) == 15
    assert torch.equal(
        calibration_order(len(truth), 5)[:15].sort().values, (other.data.train.labels >= 0).nonzero()[:, 0]
    )


def test_few_labels_count_less_than_many():
    assert (label_weight(100), label_weight(500), label_weight(5000)) == (0.1, 0.5, 1.0)


def test_fusing_with_the_labels_of_a_table(asked, data, tmp_path, capsys):
    truth, report = data.train.required_labels, tmp_path / "report.json"
    table = filled(asked, tmp_path / "labels.csv", lambda _, number: str(int(truth[number])))
    arguments = ["fuse", *small_files(), "--data", "digits", "--preset", "fast", "--calibration", "300"]
    arguments += ["--out", str(tmp_path / "child.safetensors"), "--report", str(report)]
    arguments += ["--set", "train.self_training=2"]
    assert main([*arguments, "--labels-from", str(table)]) == 0
    recipe = json.loads(report.read_text())["recipe"]["teach"]
    assert (recipe["labelled"], recipe["label_weight"]) == (30, 0.03)
    capsys.readouterr()
    for more, sentence in (
        (["--set", "teach.labelled=5"], "leave out teach.labelled"),
        (["--set", "train.finetune=1"], "leave out train.finetune"),
        (["--calibration", "20"], "--calibration 30"),
    ):
        assert main([*arguments, "--labels-from", str(table), *more]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert main([*arguments, "--labels-from", str(asked / TABLE)]) == 2
    assert "has no label yet" in " ".join(capsys.readouterr().err.split())
    assert main([*arguments, "--labels-from", str(tmp_path / "none.csv")]) == 2
    assert "there is no file" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs the columns file, number, image, label"),
        ("file,label\na.png,1\n", "needs the columns"),
        ("file,number,image,label\na.png,0,x,\n", "has no label yet"),
        ("file,number,image,label\na.png,0,x,cat\n", "line 2: cat is no label"),
        ("file,number,image,label\na.png,5000,x,1\n", "line 2: 5000 is no number"),
        ("file,number,image,label\na.png\n", "line 2: nothing is no number"),
        ("file,number,image,label\na.png,-1,x,1\n", "line 2: -1 is no number"),
        ("file,number,image,label\na.png,0,x,1\nb.png,0,x,2\n", "line 3: image 0 has another label"),
        ("file,number,image,label\na.png,0,x,1\n", "training image 0 is not the one that was labelled"),
        ('file,number,image,label\n"a.png,0,x,1\n', "cannot be read as a table"),
    ],
)
def test_damaged_tables_are_refused_in_words(data, tmp_path, text, sentence):
    path = tmp_path / TABLE
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_table(path, data.train, TEXTS)


def test_what_is_no_text_is_refused(data, tmp_path):
    (tmp_path / TABLE).write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match="not text in UTF-8"):
        read_table(tmp_path / TABLE, data.train, TEXTS)
    with pytest.raises(DataError, match="there is no file"):
        read_table(tmp_path / "none.csv", data.train, TEXTS)
    with pytest.raises(DataError, match="only images of bytes"):
        write_table(tmp_path / "out", Split(torch.rand(3, 1, 4, 4)), torch.tensor([0]))
    assert not (tmp_path / "out").exists()


def test_a_table_of_a_spreadsheet_has_semicolons(data, tmp_path):
    text = f"\ufefffile;number;image;label\r\na.png;4;{digest(data.train.images[4])};seven\r\n"
    (tmp_path / TABLE).write_text(text, encoding="utf-8", newline="")
    numbers, labels = read_table(
        tmp_path / TABLE, data.train, [(str(n), "seven" if n == 7 else "x") for n in range(10)]
    )
    assert (numbers.tolist(), labels.tolist()) == ([4], [7])


def test_asking_is_refused_in_words(tmp_path, capsys):
    one, other = small_files()
    out = str(tmp_path / "out")
    for arguments, sentence in (
        ([one], "at least two"),
        ([one, other, "--number", "5000"], "5000 images to label cannot be chosen of 1297"),
    ):
        assert main(["ask", *arguments, "--data", "digits", "--out", out]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert not Path(out).exists()


@pytest.mark.parametrize(
    "text",
    [
        "File, Number ,image,label\r\na.png,4,DIGEST,3\r\n",
        "file\tnumber\timage\tlabel\na.png\t4\tDIGEST\t3\n",
        "file,number,image,label,note\na.png,4,DIGEST,3\n,,,,\n\n",
        "file,number,image,label\na.png,4,DIGEST,3.0\n",
        'file,number,image,label\n"a.png","4","DIGEST"," 3 "\n',
    ],
)
def test_tables_as_spreadsheets_and_pandas_write_them(data, tmp_path, text):
    own = digest(data.train.images[4])
    for written in (own, own.removeprefix("sha256-")):  # earlier tables had no word before the digest
        (tmp_path / TABLE).write_text(text.replace("DIGEST", written), encoding="utf-8", newline="")
        numbers, labels = read_table(tmp_path / TABLE, data.train, TEXTS)
        assert (numbers.tolist(), labels.tolist()) == ([4], [3])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_table_of_unicode_text_is_read(data, tmp_path, encoding):
    text = f"\ufefffile\tnumber\timage\tlabel\r\na.png\t4\t{digest(data.train.images[4])}\t3\r\n"
    (tmp_path / TABLE).write_bytes(text.encode(encoding))
    numbers, labels = read_table(tmp_path / TABLE, data.train, TEXTS)
    assert (numbers.tolist(), labels.tolist()) == ([4], [3])


def test_a_label_with_a_comma_is_not_cut(data, tmp_path):
    (tmp_path / TABLE).write_text("file,number,image,label\na.png,4,x,3, say\n")
    with pytest.raises(DataError, match=r"line 2: there are 5 cells for 4 columns: put a label that has a ',' in quo"):
        read_table(tmp_path / TABLE, data.train, TEXTS)


def test_names_that_are_numbers_of_other_labels_are_names(data, tmp_path):
    """Folders 0 to 11 in the order of the alphabet: the third class is called 10, and the tenth label is 8."""
    names = sorted(map(str, range(12)))
    texts = [(str(number), name) for number, name in enumerate(names)]
    rows = "".join(f"a.png,{n},{digest(data.train.images[n])},{n}\n" for n in range(12))
    (tmp_path / TABLE).write_text(f"file,number,image,label\n{rows}")
    numbers, labels = read_table(tmp_path / TABLE, data.train, texts)
    assert [names[label] for label in labels.tolist()] == [str(number) for number in numbers.tolist()]


def test_a_digest_is_no_number_to_a_spreadsheet(data):
    assert all(digest(image).startswith("sha256-") for image in data.train.images[:3])


def test_asking_overwrites_no_labels_and_no_data(asked, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(photos / f"{number + 1:05d}.png")
    before = {file: file.read_bytes() for file in photos.iterdir()}
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    filled(asked, labelled / TABLE, lambda place, _: "3" if place == 7 else None)
    for data, out, sentence in (
        (photos, photos, "is in the data"),
        (photos, photos / "to-label", "is in the data"),
        ("digits", photos, "holds other files than images to label"),
        ("digits", labelled, "has labels, which would be lost"),
    ):
        assert main(["ask", *small_files(), "--data", str(data), "--out", str(out), "--number", "2"]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert {file: file.read_bytes() for file in photos.iterdir()} == before
    assert main(["ask", *small_files(), "--data", "digits", "--out", str(asked), "--number", "30", "--quiet"]) == 0


def test_settings_beside_a_table_of_labels(asked, data, tmp_path, capsys):
    truth, report = data.train.required_labels, tmp_path / "report.json"
    table = filled(asked, tmp_path / "labels.csv", lambda _, number: str(int(truth[number])))
    fuse = ["fuse", *small_files(), "--data", "digits", "--preset", "fast", "--calibration", "300"]
    fuse += ["--labels-from", str(table), "--out", str(tmp_path / "child.safetensors")]
    weighed = ["--set", "train.distil=1", "--set", "teach.label_weight=1", "--report", str(report)]
    assert main([*fuse, *weighed]) == 0
    teach = json.loads(report.read_text())["recipe"]["teach"]
    assert (teach["labelled"], teach["label_weight"]) == (30, 1)
    capsys.readouterr()
    text = table.read_text()
    for more, sentence in (
        ([], "nothing teaches it"),
        (["--set", "train.distil=1", "--report", str(table)], "would overwrite an input"),
        (
            ["--set", "train.distil=1", "--labels-from", str(asked)],
            f"is a folder: give --labels-from its table, {asked}",
        ),
    ):
        assert main([*fuse, *more]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert table.read_text() == text
    path = ["path", *small_files(), "--data", "digits", "--labels-from", str(table)]
    assert main([*path, "--methods", "activations,activations:sinkhorn"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--methods activations:sinkhorn: labelled images are read for a head that teaches the child, and" in said
    assert "nothing teaches it (solver sinkhorn gives no permutations, which a refit needs): choose a refit," in said
