"""Parents as published protocols have them: each trained by the loop of `depfuse train`, from an entry as of zoo.yaml.

A protocol says how its parents differ: random halves of the classes, Dirichlet shares of the images, or their seed
alone. Every parent is trained once into a folder and kept with its card; one that was cut off is resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depfuse.models.architecture import with_arguments
from experiments.lib.command import say
from experiments.lib.parents.sets import ParentSet
from experiments.lib.parents.train_zoo import data_of, train_entry
from experiments.lib.parents.zoo import IMAGES, Entry, Share


@dataclass(frozen=True)
class Protocol:
    """Parents that differ by their seed alone, and what all protocols have in common.

    Attributes
    ----------
    architecture
        Of every parent, without its number of outputs.
    data
        Name of the data set.
    settings
        Those of `TrainRecipe` that are not its defaults.
    kind
        Title of the table in which the parents stand.
    count
        Number of parents.
    """

    architecture: str
    data: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    count: int = 2

    differ = False  # whether the parents know different labels

    def entry(self, seed: int, number: int) -> Entry:
        """Say how parent `number`, from 0, of a seed is trained."""
        architecture = with_arguments(self.architecture, classes=IMAGES[self.data][1])
        return Entry(architecture=architecture, data=self.data, seed=self._seed(seed, number), recipe=self.settings)

    def _seed(self, seed: int, number: int) -> int:
        return 100 * seed + number

    def parents(self, seed: int, _: int, folder: Path) -> ParentSet:
        """Name all parents of a seed; they need not be trained yet."""
        files = tuple(_name(self.entry(seed, number)) for number in range(self.count))
        return ParentSet(f"seed {seed}", self.kind, self.data, files, differ=self.differ, folder=folder)

    def train(self, seed: int, number: int, path: Path, file: str, device: torch.device) -> None:
        """Train a parent on the data set that lies in a file, and write it."""
        entry = self.entry(seed, number)
        entry.check_network()
        train_entry(path.stem, entry, *data_of(entry, {self.data: Path(file)}, Path()), path, device, say=say)


class RandomClasses(Protocol):
    """Parents each of which knows an equal part of the classes, divided anew by every seed (ZipIt's protocol)."""

    differ = True

    def labels(self, seed: int, number: int) -> list[int]:
        """List the classes of a parent, in ascending order."""
        order = np.random.default_rng(seed).permutation(IMAGES[self.data][1])
        return sorted(int(label) for label in np.array_split(order, self.count)[number])

    def entry(self, seed: int, number: int) -> Entry:
        """Say how parent `number`, from 0, of a seed is trained."""
        labels = self.labels(seed, number)
        return Entry(
            architecture=with_arguments(self.architecture, classes=len(labels)),
            data=self.data,
            labels=",".join(map(str, labels)),
            seed=self._seed(seed, number),
            recipe=self.settings,
        )


@dataclass(frozen=True)
class Clients(Protocol):
    """Clients each of which has a part of the images, every class divided by Dirichlet(alpha) anew by every seed."""

    alpha: float = 0.5

    def entry(self, seed: int, number: int) -> Entry:
        """Say how client `number`, from 0, of a seed is trained."""
        share = Share(number=number, of=self.count, alpha=self.alpha, seed=seed)
        return super().entry(seed, number).model_copy(update={"share": share})


def _name(entry: Entry) -> str:
    return f"{entry.data}-{hashlib.sha256(entry.model_dump_json().encode()).hexdigest()[:12]}"
