"""Folds that were trained before, in the user's cache: a study that was killed does not train them again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from depfuse.io.atomic_files import replacing
from experiments.lib.processes import machine

HERE = Path(__file__).parent
TRAININGS = 1  # of the loop: another number where it no longer gives the folds of before


@lru_cache(maxsize=1)
def _source() -> bytes:
    """Read what scenes, networks and trainings are made by."""
    return b"".join((HERE / f"{name}.py").read_bytes() for name in ("scenes", "networks", "training"))


def stored(what: str, empty: Callable[[], nn.Module], train: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """Load a network that was trained on this kind of machine, or train and keep it; and the seconds that it took.

    Parameters
    ----------
    what
        All that the training depends on, apart from the code.
    empty
        Makes a network of its shapes.
    train
        Trains one.
    """
    digest = hashlib.sha256(f"{TRAININGS} {machine()} {what}".encode() + _source()).hexdigest()[:24]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "depfuse" / "folds"
    file = folder / f"{digest}.safetensors"
    if file.exists():
        network = empty()
        load_model(network, str(file))
        with safe_open(str(file), "pt") as opened:
            return network.eval(), float(opened.metadata()["seconds"])
    started = time.perf_counter()
    network = train()
    seconds = time.perf_counter() - started
    with replacing(file) as temporary:
        save_model(network, str(temporary), {"seconds": str(seconds)})
    return network, seconds
