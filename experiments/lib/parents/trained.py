"""Parents that a study trains for itself: each is trained once and kept with its card; on digits it takes seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from depfuse.data import load_data
from depfuse.io.atomic_files import check_writable
from depfuse.io.checkpoint import write_checkpoint
from experiments.lib.parents.digits import FOLDS, SKEWED, train_same, train_skewed, without_fold
from experiments.lib.parents.sets import DIGITS, ParentSet
from experiments.lib.processes import in_processes

FOLDER = Path("runs/parents")


def thin_resnet(blocks: int, width: float = 0.5, in_channels: int = 1) -> str:
    """The CIFAR ResNet of depth 6 blocks + 2 with zero-padded shortcuts, for digits where nothing else is said."""
    network = "depfuse.models.thin_resnet:ThinResNet"
    return f"{network}(blocks={blocks}, shortcut='A', classes=10, width={width}, in_channels={in_channels})"


class Trainer(Protocol):
    """Names the parents of a seed, and trains them."""

    def parents(self, seed: int, count: int, folder: Path, /) -> ParentSet:
        """Name the first parents of one seed; they need not be trained yet."""

    def train(self, seed: int, number: int, path: Path, file: str, device: torch.device, /) -> None:
        """Train one parent of a seed on the data set that lies in a file, and keep it."""


@dataclass(frozen=True)
class Training:
    """How the parents of an ablation are trained.

    Attributes
    ----------
    architectures
        Of the parents in turn.
    settings
        Those of the trainer that are not its defaults.
    skewed
        Whether they know different things: every second one has seen nine tenths of the images of the digits 0 to 4 and
        one tenth of those of 5 to 9, the others the other way round. All see all images where it is False.
    fold
        Whether a fifth of the training images, another one for each seed, is left out and takes the place of the test
        images.
    size
        Height and width of the images; digits have 8.
    first, apart
        Parent N of seed S is trained with the seed first + apart * S + N.
    """

    architectures: tuple[str, ...] = ("digits_resnet(width=1.0)",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    skewed: bool = False
    fold: bool = False
    size: int | None = None
    first: int = 3000  # no shipped parent has such a seed
    apart: int = 20

    def parents(self, seed: int, count: int, folder: Path) -> ParentSet:
        """Name the first parents of one seed of an ablation; they need not be trained yet."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        fold = seed % FOLDS if self.fold else None
        numbers = [self.first + self.apart * seed + number for number in range(count)]
        names = tuple(f"digits-{digest}{'' if fold is None else f'-fold{fold}'}-{number}" for number in numbers)
        return ParentSet(f"seed {seed}", DIGITS, "digits", names, folder=folder, fold=fold)

    def train(self, seed: int, number: int, path: Path, file: str = "digits", _: torch.device | None = None) -> None:
        """Train one parent of a seed and keep it; always on the CPU, where it takes seconds."""
        data = load_data(file, size=None if self.size is None else (self.size, self.size))
        if self.fold:
            data = without_fold(data, seed % FOLDS)
        architecture, first = self.architectures[number % len(self.architectures)], self.first + self.apart * seed
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the order of additions depends on the number of threads
        try:
            if self.skewed:
                begins = first + number - number % 2
                settings = {**SKEWED, **self.settings}
                model, card = train_skewed(data, "ab"[number % 2], begins, settings, architecture)
            else:
                model, card = train_same(data, first + number, architecture, self.settings)
        finally:
            torch.set_num_threads(threads)
        write_checkpoint(path, model.state_dict(), card)


@dataclass(frozen=True)
class _Missing:
    training: Trainer
    seed: int
    number: int
    path: Path
    file: str
    device: torch.device


def train_missing(
    wanted: Iterable[tuple[Trainer, int, int]],
    folder: Path,
    files: Mapping[str, str],
    *,
    device: torch.device,
    processes: int,
    threads: int,
    say: Callable[[str], None],
) -> None:
    """Train the parents, given as (training, seed, number of parents), that are not in the folder yet.

    `files` says where each data set lies.

    Raises
    ------
    CheckpointError
        The folder cannot be written.
    CellError
        A process died.
    """
    sets = [(training, seed, training.parents(seed, count, folder)) for training, seed, count in wanted]
    missing = {
        path: _Missing(training, seed, number, path, files[parents.data], device)
        for training, seed, parents in sets
        for number, path in enumerate(parents.paths)
        if not path.is_file()
    }
    for path in missing:
        check_writable(path)
    done = in_processes(_train, list(missing.values()), processes=processes, threads=threads)
    for number, (parent, _) in enumerate(done, start=1):
        say(f"trained {number}/{len(missing)}: {parent.path.stem}")


def _train(parent: _Missing) -> None:
    parent.training.train(parent.seed, parent.number, parent.path, parent.file, parent.device)
