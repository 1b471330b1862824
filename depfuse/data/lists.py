"""Lists of image files: one a line in a text, or a table with a column of files."""

from __future__ import annotations

import codecs
import csv
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depfuse.data.image_files import find_images
from depfuse.data.images import SUFFIXES
from depfuse.data.parts import KINDS, Part, data_set_of
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import DataSet
from depfuse.errors import DataError, DepfuseWarning
from depfuse.text import counted

ENDINGS = (".txt", ".csv", ".tsv")
# Words in the heads of columns.
FILES = {"file", "files", "path", "paths", "filename", "filepath", "image", "images", "img", "photo", "picture"}
LABELS = {"label", "labels", "class", "classes", "target", "targets", "category", "y"}
PARTS = {"split", "part", "subset", "set", "fold"}
MOST_BYTES = 2**28  # of a list: a million long paths are half of it

Row = tuple[int, str, str | None, str | None]  # line, file, label, part
Cells = tuple[int, Sequence[str]]  # line, cells
_BINARY = re.compile(r"[01](\.0*)?")


def load_list(path: Path, preprocessing: Preprocessing) -> DataSet:
    """Load the images that a list names, relative to its folder; many are decoded when they are needed.

    A text has one file a line, and a label after it if need be. A table, with commas, semicolons or tabs, has them in
    its first two columns, or in those whose heads have words such as file and label; a column `split` says train or
    test. Labels are whole numbers from 0, or else names of classes. Several columns of 0 and 1 beside the files, one of
    them 1 in each row, are classes in their order, called by their heads.

    Raises
    ------
    DataError
        It is no such list, names a file that is not there or says two things of one, or only some files have a label;
        the line is named.
    """
    listed, classes = _rows(path)
    rows = _once(path, listed)
    if not rows:
        raise DataError(f"{path} names no images: it needs one file a line")
    unlabelled = next((row for row in rows if row[2] is None), None)
    labelled = next((row for row in rows if row[2] is not None), None)
    if unlabelled is not None and labelled is not None:
        raise DataError(
            f"{path}, line {unlabelled[0]}: {unlabelled[1]} has no label, and others have: give all, or none"
        )
    if len(rows) > 1 and len({row[3] is None for row in rows}) > 1:
        raise DataError(f"{path}: some files are said to be for training or tests and others are not: say it of all")
    names = sorted({row[3] for row in rows if row[3] is not None})
    groups = [[row for row in rows if row[3] == name] for name in names] or [rows]
    files = find_images(
        [[row[1] for row in group] for group in groups], path.parent, preprocessing.size, preprocessing.of_colour
    )
    # A table with a label missing, or of several columns of numbers, has been written with 3.0 for 3.
    numbers = labelled is not None and all(
        row[2] is not None and re.fullmatch(r"\d{1,18}(\.0+)?", row[2]) for row in rows
    )
    made = [Part(own, _labels(group, numbers) if labelled else None) for own, group in zip(files, groups, strict=True)]
    whole = None if names else made[0]
    return data_set_of(str(path), dict(zip(names, made, strict=False)), whole, classes, preprocessing)


def _once(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Keep the first of several equal rows of one file, which would be a training and a test image else."""
    first: dict[tuple[str, bool], Row] = {}  # that only some have a label is said elsewhere
    repeated = 0
    for row in rows:
        before = first.setdefault((os.path.abspath(row[1]), row[2] is None), row)
        if before is row:
            continue
        if before[2:] != row[2:]:
            raise DataError(f"{path}, line {row[0]}: {row[1]} has another label or part in line {before[0]}: give one")
        repeated += 1
    if repeated:
        warnings.warn(
            f"{path}: each file is taken once, and {counted(repeated, 'line')} left out that repeat others",
            DepfuseWarning,
            stacklevel=3,
        )
    return list(first.values())


def _labels(rows: Sequence[Row], numbers: bool) -> NDArray[np.int64] | NDArray[np.str_]:
    texts = [str(row[2]) for row in rows]
    if numbers:
        return np.array([text.partition(".")[0] for text in texts], np.int64)
    return np.array(texts, np.str_)


def _rows(path: Path) -> tuple[Iterable[Row], Sequence[str] | None]:
    """Read the rows of a list, and the names of classes that labels are numbers of, where it says them in its head."""
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path} has more than {MOST_BYTES / 2**20:.0f} MiB, more than any list of files")
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Windows' shell writes it
    try:
        lines = content.decode("utf-16" if wide else "utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is no list of files: it is not text in UTF-8") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return (_of_text(path, numbered), None) if path.suffix.lower() == ".txt" else _of_table(path, numbered)


def _of_text(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        text = line.strip()
        if (file := _place(path, text)) is not None:
            yield number, file, None, None
        elif text.startswith("#"):
            continue
        else:
            divided = re.fullmatch(r"(.*?)\s*[,;\t]\s*([^,;\t]*)|(.*\S)\s+(\S+)", text)
            first, label = (divided[1] or divided[3], divided[2] or divided[4]) if divided else (text, None)
            file = None if first is None else _place(path, first)
            if file is None:
                raise _missing(path, number, first or text)
            yield number, file, label or None, None


def _is_comment(path: Path, line: str) -> bool:
    """Tell a comment from a name of a file, or from heads, which may begin like one."""
    return line.startswith("#") and not re.search("[,;\t]", line) and _place(path, line.strip()) is None


def _of_table(path: Path, lines: Sequence[tuple[int, str]]) -> tuple[Iterable[Row], Sequence[str] | None]:
    lines = [line for line in lines if not _is_comment(path, line[1])]
    if not lines:
        return (), None
    head = lines[0][1]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    try:
        table: Sequence[Cells] = [
            (number, [cell.strip() for cell in row]) for number, line in lines for row in [_cells(line, delimiter)]
        ]
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from None
    columns, classes = {"file": 0, "label": 1}, None
    second = table[1][1] if len(table) > 1 else []
    # The first row is a header where it has no file, and it names a column of files or the second row has one.
    heads = [set(re.split(r"[\W_]+", cell.lower())) for cell in table[0][1]]
    named = [place for place, words in enumerate(heads) if words & FILES]
    there = [place for place, cell in enumerate(second) if _place(path, cell) is not None]
    if _place(path, table[0][1][0]) is None and (named or there):
        names, table = table[0][1], table[1:]
        columns = _columns(heads, named, there)
        if "label" not in columns:
            others = [place for place in range(len(names)) if place not in columns.values()]
            table, classes = _labelled(path, names, others, columns, table)
    return _of_cells(path, table, columns), classes


def _of_cells(path: Path, table: Sequence[Cells], columns: Mapping[str, int]) -> Iterator[Row]:
    for number, row in table:
        cells = {what: row[place] for what, place in columns.items() if place < len(row) and row[place]}
        file = _place(path, cells.get("file", ""))
        if file is None:
            raise _missing(path, number, cells.get("file", ""))
        part = cells.get("part")
        if part is not None and part.lower() not in KINDS:
            raise DataError(f"{path}, line {number}: {part} is no part of a data set: say train, val or test")
        yield number, file, cells.get("label"), None if part is None else part.lower()


def _columns(heads: Sequence[set[str]], named: Sequence[int], there: Sequence[int]) -> dict[str, int]:
    """Settle which column is which by its head, that of files also by its first cell."""
    columns = {"file": next((place for place in there if place in named), (*there, *named)[0])}
    for what, words in (("label", LABELS), ("part", PARTS)):
        places = [
            place
            for place, words_of_head in enumerate(heads)
            if words_of_head & words and place not in columns.values()
        ]
        if places:
            columns[what] = places[0]
    return columns


def _labelled(
    path: Path, names: Sequence[str], others: Sequence[int], columns: dict[str, int], table: Sequence[Cells]
) -> tuple[Sequence[Cells], Sequence[str] | None]:
    """Find the labels of a table without a column called so, and settle their column.

    They are in its only other column, or else say in which of all others there is a 1 beside zeros; the names of these
    are the classes then.
    """
    if len(others) == 1:
        columns["label"] = others[0]
        return table, None
    cells = [[row[place] if place < len(row) else "" for place in others] for _, row in table]
    zeros = all(_BINARY.fullmatch(cell) for row in cells for cell in row)
    ones = [[place for place, cell in enumerate(row) if cell.startswith("1")] for row in cells]
    if others and zeros and all(len(row) == 1 for row in ones):
        columns["label"] = first = others[0]
        numbered = [
            (number, [*row[:first], str(one), *row[first + 1 :]])
            for (number, row), (one,) in zip(table, ones, strict=True)
        ]
        return numbered, [names[place] for place in others]
    if others:
        several = ", and they are not one 1 beside zeros in each row" if zeros else ""
        warnings.warn(
            f"{path}: the images are taken without labels: of {', '.join(names[place] for place in others[:4])} no"
            f" column is called label{several}",
            DepfuseWarning,
            stacklevel=2,
        )
    return table, None


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [""]) or [""]


def _place(path: Path, name: str) -> str | None:
    """Find a file that a list names: below the list's folder, or wherever the name leads from here."""
    if not name or "\0" in name:
        return None
    endings = (
        ("",) if os.path.splitext(name)[1].lower() in SUFFIXES else ("", *sorted(SUFFIXES))
    )  # a table may have bare names
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):  # a list may come from Windows
        for start in (os.path.join(path.parent, spelling), spelling):
            for ending in endings:
                if os.path.isfile(start + ending):
                    return start + ending
    return None


def _missing(path: Path, number: int, name: str) -> DataError:
    return DataError(f"{path}, line {number}: there is no file {name!r} in {path.parent} or here")
