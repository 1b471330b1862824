"""Data sets as files: digits come with scikit-learn, MNIST and CIFAR from the folder of shared parents, or as given."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from depfuse.data import DATA_SETS
from depfuse.errors import DataError
from experiments.lib.places import SHARED


def files_of(names: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Map each data set to what `load_data` takes; the CIFARs are unpacked where nothing is given.

    Raises
    ------
    DataError
        A file is not there, or is given for an unknown data set.
    """
    if unknown := [name for name in given if name not in DATA_SETS]:
        raise DataError(f"--npz {unknown[0]} is no data set: give one of {', '.join(DATA_SETS)}, as in cifar100=FILE")
    found = {}
    for name in dict.fromkeys(names):
        if name in given or name == "digits":
            found[name] = given.get(name, name)
        elif not (SHARED / "tools").is_dir():
            raise DataError(f"{name} is not there: give --npz {name}=FILE, or set DEPFUSE_SHARED")
        else:
            found[name] = str(SHARED / "data" / "mnist.npz" if name == "mnist" else unpacked(name))
        if name != "digits" and not Path(found[name]).is_file():
            raise DataError(f"there is no file {found[name]}: --npz takes data sets as {name}=FILE")
    return found


def unpacked(name: str) -> Path:
    """Return the file of cifar10 or cifar100; unpacked once into the user's cache."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "depfuse"
    file = cache_folder / f"{name}.npz"
    if not file.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
            subprocess.run([sys.executable, SHARED / "tools" / "unpack_images.py", folder, name], check=True)
            (Path(folder) / file.name).rename(file)
    return file
