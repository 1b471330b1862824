"""Families of parents, of which a seed says which: trained for the purpose, or a set of sets.py for each seed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from experiments.lib.parents.sets import DIGITS, RUNS, SETS, ParentSet, resnet20
from experiments.lib.parents.trained import Trainer, Training, thin_resnet

SEEDS = 10


@dataclass(frozen=True)
class Family:
    """Sets of parents that differ by their seed.

    Attributes
    ----------
    title
        Heading of its columns.
    images
        Number of calibration images, where nothing else is said.
    training
        How its parents are trained; a step may say otherwise.
    real
        Sets of networks that are there, one for each seed, instead.
    fixed
        Whether these are one set for all seeds, which draw the calibration images only.
    count
        Number of seeds that are taken where nothing is said; of real sets, all.
    gpu
        Whether its parents are trained on a GPU alone, where nobody asks for them by name.
    """

    title: str
    images: int
    training: Trainer = field(default_factory=Training)
    real: tuple[ParentSet, ...] = ()
    fixed: bool = False
    count: int = SEEDS
    gpu: bool = False

    @property
    def seeds(self) -> range:
        """The seeds that are taken where nothing is said."""
        return range(len(self.real) or self.count)

    def parents(self, seed: int, count: int, folder: Path, training: Trainer | None = None) -> ParentSet:
        """Name so many parents of a seed, trained in another way where it is given; see `Training.parents`."""
        if self.real:
            return self.real[0 if self.fixed else seed]
        return (training or self.training).parents(seed, count, folder)


def _sets(*names: str) -> tuple[ParentSet, ...]:
    return tuple(SETS[name] for name in names)


_WIDTHS = ("digits_resnet(width=1.5)", "digits_resnet(width=1.0)")
_VGG = {"batch_size": 32, "learning_rate": 0.02, "warmup": 5.0, "weight_decay": 2e-3, "label_smoothing": 0.0}
_UNSEEN = {"fold": True, "first": 1000, "apart": 2}  # seeds that no shipped parent has
FAMILIES = {
    "digits": Family("digits", 900),
    "digits-skewed": Family("digits, skewed", 900, Training(skewed=True)),
    "digits-deep": Family("digits, ResNet20", 900, Training((thin_resnet(blocks=3),))),
    "resnet20": Family("real ResNet20", 2000, real=_sets("resnet20-8-1-8-2", "resnet20-8-1-8-3", "resnet20-8-2-8-3")),
    "resnet20-pairs": Family("pairs of ResNet20", 2000, real=tuple(resnet20(*pair) for pair in combinations(RUNS, 2))),
    "digits-shipped": Family("shipped pairs", 2000, real=_sets("digits", *(f"digits-skewed-{n}" for n in range(1, 5)))),
    "digits-skewed-folds": Family(
        "skewed, judged on a fifth of the training images", 2000,
        Training(("digits_resnet(width=1.25)",), {"epochs": 15}, skewed=True, **_UNSEEN),
    ),
    "digits-widths": Family("skewed", 2000, Training(_WIDTHS, skewed=True, first=0, apart=2), count=5),
    "digits-widths-same": Family("one knowledge", 2000, Training(_WIDTHS, first=0, apart=2), count=5),
    "digits-widths-folds": Family(
        "skewed, judged on a fifth of the training images", 2000, Training(_WIDTHS, skewed=True, **_UNSEEN), count=5
    ),
    "digits-vgg": Family(
        "VGG11 without BatchNorm, digits of 32 x 32 pixels", 1000,
        Training(
            ("vgg11(batch_norm=False, in_channels=1, width=0.5)",), {"epochs": 30, **_VGG}, size=32, first=0, apart=2
        ),
        count=3,
    ),
}  # fmt: skip


def families(*names: str) -> dict[str, Family]:
    """Choose families by their names."""
    return {name: FAMILIES[name] for name in names}


def sets(*names: str) -> dict[str, Family]:
    """Choose sets of sets.py by their names, all where none is given."""
    return {name: _of_set(name) for name in names or SETS}


def shipped(name: str, title: str, kind: str) -> Family:
    """Choose a set of sets.py under another title, in a table of its own kind."""
    return replace(_of_set(name), title=title, real=(replace(SETS[name], kind=kind),))


def _of_set(name: str) -> Family:
    digits = SETS[name].kind == DIGITS
    title = f"digits {SETS[name].title}" if digits else SETS[name].title
    return Family(title, 900 if digits else 2000, real=_sets(name), fixed=True)
