"""Save the state of a training in a file, and resume from it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from depfuse.errors import CheckpointError
from depfuse.io.atomic_files import replacing
from depfuse.train.recipe import SAVE_SECONDS

# A training's identity, part by part, in the words of the sentence that says what differs.
_PARTS = {"recipe": "recipe", "data": "data set", "start": "network or seed", "teacher": "teacher"}


@dataclass(frozen=True)
class Saving:
    """Where and how often the state of a training is saved.

    Attributes
    ----------
    path
        Its file. A training that finds its own state there is resumed from it. The state of a finished training is
        saved as well: delete the file once the result is saved.
    seconds
        Least time between two savings, each at the end of an epoch; the last epoch is always saved.
    start
        Identifies the start of the training; the digest of the network's weights when left out.
    """

    path: Path
    seconds: float = SAVE_SECONDS
    start: str | None = None


def write_state(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the state of a training with its identity, all or nothing."""
    # Through memory, because torch.save does not say in the usual way that a disk is full.
    buffer = io.BytesIO()
    torch.save({"identity": identity, **state}, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read the state of a training.

    Raises
    ------
    CheckpointError
        The file is none, or its training has another recipe, data set, start or teacher.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = dict(state["identity"])
    except Exception:  # torch has no one exception for a broken file
        raise CheckpointError(f"{path} is not the state of a training: delete it to start afresh") from None
    different = [key for key in identity if saved.get(key) != identity[key]]
    if different:
        raise CheckpointError(
            f"{path} is the state of a training with another {_PARTS[different[0]]}: "
            f"give another path, or delete it to start afresh"
        )
    return state
