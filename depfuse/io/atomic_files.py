"""Atomic writing of files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors

from depfuse.errors import CheckpointError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block succeeds.

    The folder is created where it does not exist, and a link is followed. On any failure the file at `path` stays as it
    was, and no temporary file is left.

    Raises
    ------
    CheckpointError
        The file cannot be written.
    """
    path = Path(path)
    with _writing(path):
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(place)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(place)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_files(folder: str | Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, whose files take their places in it when the block succeeds.

    What else is in the folder stays. On a failure of the block nothing changes.

    Parameters
    ----------
    last
        Name of the file that is moved after all others.

    Raises
    ------
    CheckpointError
        The files cannot be written.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} cannot be written: it is a file, and a folder is wanted")
    temporary = _temporary(Path(os.path.realpath(folder)))
    try:
        with _writing(folder / last):
            temporary.mkdir(parents=True)
            yield temporary
            folder.mkdir(exist_ok=True)
            files = [file for file in temporary.rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda file: file.name == last):
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
                place = folder / file.relative_to(temporary)
                place.parent.mkdir(exist_ok=True)
                file.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | Path) -> None:
    """Raise `CheckpointError` unless a file can be written at `path`; call it before long work."""
    path = Path(path)
    with _writing(path):
        place = Path(os.path.realpath(path))
        folder = place.parent
        while not folder.exists():  # `replacing` makes the folders that are missing
            folder = folder.parent
        probe = _temporary(folder / place.name)
        probe.touch()
        probe.unlink()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn any error of writing a file into a `CheckpointError`."""
    # A file that takes its place would end a device, such as /dev/null, for every program. os.path raises nothing.
    if os.path.exists(path) and not os.path.isfile(path):
        what = "it is a folder" if os.path.isdir(path) else "it is a device or a pipe, and a file is wanted"
        raise CheckpointError(f"{path} cannot be written: {what}")
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
