"""The rows of a table in which a user fills in labels."""

from __future__ import annotations

import csv
import io
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

from depfuse.errors import DataError

TABLE = "labels.csv"
COLUMNS = ("file", "number", "image", "label")
MOST_BYTES = 2**24
DELIMITERS = ",;\t"


def check_folder_of_table(folder: Path, data: Path | None) -> None:
    """Raise `DataError` where images to label would be among those of the data, or lie over a user's own files.

    Parameters
    ----------
    folder
        Where a table and its images are to be written; one without labels may be there already.
    data
        The folder of the images to choose from, or another form of data, or None.
    """
    if data is not None and data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise DataError(
            f"{folder} is in the data, {data}, to which its images would be added: choose a folder elsewhere"
        )
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    table = folder / TABLE
    if not table.is_file():
        raise DataError(f"{folder} holds other files than images to label: choose a new folder")
    if any(row["label"].strip() for _, row in read_rows(table)):
        raise DataError(f"{table} has labels, which would be lost: choose another folder")


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a table, column -> cell, with their lines.

    Text is UTF-8, or UTF-16 with its mark, as spreadsheets write "Unicode text". Cells are separated by commas,
    semicolons or tabulators; empty rows are left out.

    Raises
    ------
    DataError
        The table cannot be read, lacks a column, or has a row with more cells than columns.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: give the table that `depfuse ask` wrote, with labels filled in")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path} has more than {MOST_BYTES // 2**20} MiB, more than any table of labels")
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
        heads = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=heads.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = [head.strip().lower() for head in next(reader, [])]
        if any(columns.count(name) != 1 for name in COLUMNS):
            raise DataError(
                f"{path} is no table of images to label: its first line needs the columns {', '.join(COLUMNS)}, as"
                " `depfuse ask` writes them"
            )
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if any(cell.strip() for cell in cells[len(columns) :]):
                raise DataError(
                    f"{path}, line {reader.line_num}: there are {len(cells)} cells for {len(columns)} columns: put a"
                    f" label that has a {delimiter!r} in quotes"
                )
            cells += [""] * (len(columns) - len(cells))
            rows.append((reader.line_num, dict(zip(columns, cells, strict=False))))
        return rows
    except UnicodeDecodeError:
        raise DataError(f"{path} is no table of images to label: it is not text in UTF-8: save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from None
