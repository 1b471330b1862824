"""A table of images that a user labels: written with empty labels, and read with those that were filled in."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Container, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from depfuse.data.image_files import ImageFiles
from depfuse.data.tensors import Split
from depfuse.errors import DataError
from depfuse.io.atomic_files import replacing_files
from depfuse.io.label_rows import COLUMNS, TABLE, read_rows

DIGEST = "sha256-"


def write_table(folder: Path, split: Split, numbers: Tensor) -> None:
    """Write images by number (n,) as files into a folder, with a table that has an empty label for each.

    Image files are copied, other images written as PNG. A row has the file, the number of the image in the training
    data, a digest of it, and the label.

    Raises
    ------
    DataError
        The images are no pictures of one or three channels.
    CheckpointError
        The files cannot be written.
    """
    chosen = split.take(numbers)
    pixels = chosen.held().images
    if (
        not isinstance(pixels, Tensor)
        or pixels.dtype != torch.uint8
        or pixels.dim() != 4
        or pixels.shape[1] not in (1, 3)
    ):
        raise DataError(
            "only images of bytes with one or three channels are written as pictures: choose in Python, by depfuse.ask"
        )
    with replacing_files(folder, TABLE) as temporary:
        rows = []
        for place, (number, image) in enumerate(zip(numbers.tolist(), pixels, strict=True)):
            source = Path(chosen.images.paths[place]) if isinstance(chosen.images, ImageFiles) else None
            name = f"{place + 1:05d}{'.png' if source is None else source.suffix}"
            if source is None:
                _write_picture(temporary / name, image)
            else:
                shutil.copyfile(source, temporary / name)
            rows.append((name, number, digest(image), ""))
        with (temporary / TABLE).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


def read_table(path: Path, split: Split, labels: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Read the numbers (n,) of images that have a label, and these labels (n,), int64.

    Parameters
    ----------
    path
        The table; rows without a label are left out.
    split
        The training images, which have to be those that were chosen from.
    labels
        For each output of a network the texts that mean it: its label, and a name if it has one.

    Raises
    ------
    DataError
        The table cannot be read, has no label, one that no output has, or is of other images; the line is named.
    """
    known = _places(labels)
    found: dict[int, int] = {}
    digests: dict[int, str] = {}
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        number, label = row["number"].strip(), _whole(row["label"].strip(), known)
        if not number.isdecimal() or len(number) > 12 or int(number) >= len(split):
            raise DataError(f"{where}: {number or 'nothing'} is no number of one of the {len(split)} training images")
        if not label:
            continue
        if label not in known:
            some = ", ".join(texts[-1] for texts in labels[:10])
            raise DataError(f"{where}: {label} is no label of these networks: give one of {some}")
        if found.setdefault(int(number), known[label]) != known[label]:
            raise DataError(f"{where}: image {number} has another label in a line before: give one")
        digests[int(number)] = row["image"].strip()
    if not found:
        raise DataError(f"{path} has no label yet: fill in the column named label")
    numbers = torch.tensor(list(found))
    images = split.take(numbers).held().images
    for image_number, image in zip(found, images, strict=True):
        if digests[image_number] not in (digest(image), digest(image).removeprefix(DIGEST)):
            raise DataError(
                f"{path}: training image {image_number} is not the one that was labelled: give the data that they were"
                " chosen from"
            )
    return numbers, torch.tensor(list(found.values()))


def digest(image: Tensor) -> str:
    """Compute a digest of an image: 16 digits and letters, after a word that keeps spreadsheets from reading 1e5."""
    return DIGEST + hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]


def _places(labels: Sequence[Sequence[str]]) -> dict[str, int]:
    """Map each text to its output: names, and numbers of labels that are no name of another."""
    names = {texts[-1]: place for place, texts in enumerate(labels)}
    numbers = {texts[0]: place for place, texts in enumerate(labels)}
    return {**numbers, **names}


def _whole(label: str, known: Container[str]) -> str:
    """Read 3.0, which a column of numbers with gaps becomes in pandas, as 3."""
    whole = label.removesuffix(".0")
    return whole if label not in known and whole in known else label


def _write_picture(path: Path, image: Tensor) -> None:
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    Image.fromarray(pixels.contiguous().numpy()).save(path, "PNG")
