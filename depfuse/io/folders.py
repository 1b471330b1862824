"""Files with the weights of a network that is saved as a folder, or in parts. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from depfuse.errors import CheckpointError
from depfuse.models.origin import shown
from depfuse.text import first_line

_INDEX = ".index.json"
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pdparams")
_INDEX_BYTES, _SHARDS = 2**26, 10_000


def weight_files(path: Path) -> tuple[Path, ...]:
    """List the files that hold the weights of a checkpoint: itself, or those of a folder or of an index of parts.

    A folder, as `save_pretrained` and hubs write it, has one file with weights, or an index that names the parts; what
    the index names must be in the same folder.

    Raises
    ------
    CheckpointError
        A folder has no weights, or several files of them; an index is none, or names what is not in its folder.
    """
    if path.is_dir():
        path = _main_file(path)
    if not path.name.endswith(_INDEX):
        return (path,)
    names = _parts(path)
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{path} names {shown(name)}, which is not in its own folder: no such file is opened")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path} names {len(names)} files with parts of the weights, and {shown(missing[0])} is not there"
        )
    return tuple(path.parent / name for name in names)


def _main_file(folder: Path) -> Path:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None
    if (folder / ".metadata").is_file() and any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            f"{folder} is a checkpoint in parts of torch.distributed: make one file of it with"
            " python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    if "zero_to_fp32.py" in names or any(folder.glob("*/mp_rank_*_model_states.pt")):
        raise CheckpointError(
            f"{folder} is a checkpoint of DeepSpeed: give its mp_rank_00_model_states.pt, or, where that has no weights"
            " (ZeRO 3), make one file with python zero_to_fp32.py FOLDER FILE"
        )
    for ending in _ENDINGS:
        indices = [name for name in names if name.endswith(f"{ending}{_INDEX}")]
        found = indices or [name for name in names if name.endswith(ending) and not _beside(name)]
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise CheckpointError(
                f"{folder} is a folder with several files of weights ({', '.join(map(shown, found[:4]))}"
                f"{', ...' if len(found) > 4 else ''}): name one of them"
            )
    raise CheckpointError(
        f"{folder} is a folder, not a checkpoint file, and has no file of weights such as model.safetensors"
    )


def _beside(name: str) -> bool:
    """Tell whether a file is the state of a training, which libraries keep beside the weights."""
    return name.startswith(("optimizer.", "scheduler.", "rng_state", "training_args.", "scaler."))


def _parts(index: Path) -> list[str]:
    """Read the names of the files that an index names."""
    try:
        if index.stat().st_size > _INDEX_BYTES:
            raise CheckpointError(f"{index} is larger than any index of weights")
        content: Any = json.loads(index.read_bytes())
        named = content["weight_map"].values()
        names = list(dict.fromkeys(map(str, named)))
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {index}") from None
    except RecursionError:
        raise CheckpointError(f"{index} is nested too deeply to be an index of weights") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of the parts of weights: {first_line(error)}") from None
    if not names or len(names) > _SHARDS:
        raise CheckpointError(f"{index} names {len(names)} files with weights: it is no index of parts")
    return names
