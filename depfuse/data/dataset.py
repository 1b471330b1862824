"""From what the user names to a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from depfuse.data.builtin import load_builtin
from depfuse.data.files import load_folder, load_npz
from depfuse.data.names import DATA_SETS, check_data_name
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import DataSet


def load_data(
    spec: str | Path,
    *,
    root: Path = Path("data"),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    download: bool = True,
) -> DataSet:
    """Load a data set by name or from the user's own files.

    Parameters
    ----------
    spec
        A name in `DATA_SETS`, the path of a .npz file, or a folder of images by class.
    root
        Where downloaded data sets are kept.
    mean, std, size
        Override that part of the data set's pre-processing; a .npz file or a folder has none of its
        own. `size` is (height, width).
    download
        Whether a data set that is not under `root` may be downloaded.

    Raises
    ------
    DataError
        The data are not there, cannot be read, or contradict themselves.
    """
    check_data_name(spec)
    given = Preprocessing.create(size=size, mean=mean, std=std)
    name = str(spec)
    if name in DATA_SETS:
        data = load_builtin(name, root, download=download)
        own = data.preprocessing
        merged = Preprocessing.create(
            size=given.size or own.size, mean=given.mean or own.mean, std=given.std or own.std
        )
        merged.check_channels(data.train.images.shape[1])
        merged.check_size(*data.train.images.shape[2:])
        return dataclasses.replace(data, preprocessing=merged)
    path = Path(spec)
    return load_folder(path, given) if path.is_dir() else load_npz(path, given)
