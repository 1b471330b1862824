"""Tell what network a file holds by its tensors, where nothing in it says so: upscalers and restorers of spandrel."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from depfuse.io.cards import Card
from depfuse.io.checkpoint import Checkpoint, read_checkpoint, state_digest
from depfuse.models.origin import FromFile
from depfuse.models.spandrel_networks import recognise


def recognised(checkpoint: Checkpoint) -> Checkpoint:
    """Add a card with the architecture to a checkpoint that has none; the same checkpoint where it is not recognised.

    Where the file has other names than the network, as of an older version of it, its tensors get the network's.
    """
    if checkpoint.card is not None:
        return checkpoint
    found = recognise(checkpoint.state)
    if found is None:
        return checkpoint
    card = Card(architecture=found.architecture)
    if set(found.state) <= set(checkpoint.state):
        return replace(checkpoint, card=card)
    state = {name: checkpoint.state.get(found.names.get(name, name), tensor) for name, tensor in found.state.items()}
    return replace(checkpoint, card=card, state=state, digest=state_digest(state), weights=None)


def recognised_architecture(path: Path, key: str | None = None) -> FromFile | None:
    """Recognise the network in a file, which is read once however often it is asked for; None where it is unknown."""
    files = [path] if path.is_file() else sorted(own for own in path.iterdir() if own.is_file())
    return _architecture(path, key, tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=64)
def _architecture(path: Path, key: str | None, state_of_files: tuple[tuple[int, int], ...]) -> FromFile | None:
    card = recognised(read_checkpoint(path, key)).card
    return None if card is None else FromFile(card.architecture)
