"""Detectors of a seed that know one half of the digits each; trained once, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from depfuse.io.atomic_files import replacing
from experiments.lib.detection.network import Detector
from experiments.lib.detection.scenes import Material, Scene, draw
from experiments.lib.detection.training import train

KNOWN = (tuple(range(5)), tuple(range(5, 10)))
ALL = tuple(range(10))
PICTURES, EPOCHS = 2000, 8
UNLABELLED, TESTS = 10_000, 20_000  # seeds from which such pictures are drawn


@lru_cache(maxsize=2)
def material(*, test: bool) -> Material:
    """Digits and backgrounds, read once."""
    return Material.of(test=test)


def parents(seed: int, folder: Path, pictures: int = PICTURES) -> list[Detector]:
    """Train or load the two detectors of a seed: each has seen its own digits alone, in pictures of its own."""
    found = []
    for number, known in enumerate(KNOWN):
        own = 2 * seed + number
        path = folder / f"detector-{pictures}-{own}.safetensors"
        if not path.is_file():
            trained = train(*draw(material(test=False), pictures, known, own), known, own, EPOCHS)
            with replacing(path) as temporary:
                save_file(trained.state_dict(), temporary)
        network = Detector(len(known))
        network.load_state_dict(load_file(path))
        found.append(network.eval())
    return found


def unlabelled(seed: int, count: int) -> Tensor:
    """Draw training pictures of all digits, without what is in them."""
    return draw(material(test=False), count, ALL, UNLABELLED + seed)[0]


def tests(count: int) -> tuple[Tensor, Sequence[Scene]]:
    """Draw test pictures of all digits: other digits over other backgrounds than any network has seen."""
    return draw(material(test=True), count, ALL, TESTS)
