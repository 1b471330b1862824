"""Tell what network a file holds by its tensors, where nothing in it says so: upscalers and restorers of spandrel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from depfuse.io.cards import Card
from depfuse.io.checkpoint import Checkpoint, read_checkpoint, state_digest
from depfuse.models.origin import FromFile
from depfuse.models.spandrel_networks import recognise

MOST = 64  # files whose networks are kept, without their tensors


def recognised(checkpoint: Checkpoint) -> Checkpoint:
    """Add a card with the architecture to a checkpoint that has none; the same checkpoint where it is not recognised.

    Where the file has other names than the network, as of an older version of it, its tensors get the network's. What
    is found is kept, by the checkpoint's digest.
    """
    if checkpoint.card is not None:
        return checkpoint
    found = _found_in(checkpoint)
    if found is None:
        return checkpoint
    card = Card(architecture=found.architecture)
    if found.names.keys() <= checkpoint.state.keys():
        return replace(checkpoint, card=card)
    own = checkpoint.state
    state = {name: own[key] if key in own else found.others[name] for name, key in found.names.items()}
    return replace(checkpoint, card=card, state=state, digest=state_digest(state), weights=None)


@dataclass(frozen=True)
class _Found:
    """An architecture, with name in the network -> name in the file, and the tensors that are not in the file."""

    architecture: FromFile
    names: Mapping[str, str]
    others: Mapping[str, Tensor]


_kept: dict[str, _Found | None] = {}  # by digest


def _found_in(checkpoint: Checkpoint) -> _Found | None:
    """Recognise a checkpoint once."""
    if checkpoint.digest not in _kept:
        found, own = recognise(checkpoint.state), None
        if found is not None:
            names = {name: found.names.get(name, name) for name in found.state}
            others = {name: found.state[name] for name, key in names.items() if key not in checkpoint.state}
            own = _Found(found.architecture, names, others)
        if len(_kept) == MOST:
            _kept.clear()
        _kept[checkpoint.digest] = own
    return _kept[checkpoint.digest]


def recognised_architecture(path: Path, key: str | None = None) -> FromFile | None:
    """Recognise the network in a file, which is read once however often it is asked for; None where it is unknown."""
    files = [path] if path.is_file() else sorted(own for own in path.iterdir() if own.is_file())
    return _architecture(path, key, tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=MOST)
def _architecture(path: Path, key: str | None, state_of_files: tuple[tuple[int, int], ...]) -> FromFile | None:
    card = recognised(read_checkpoint(path, key)).card
    return None if card is None else FromFile(card.architecture)
