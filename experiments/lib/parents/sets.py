"""All sets of parents that experiments run on, by name: own checkpoints and those of other people.

Own ones lie in checkpoints/, trained by train_zoo.py and digits.py; those of other people in the folder that the
environment variable DEPFUSE_SHARED names (default: `shared` beside this repository).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.lib.places import CHECKPOINTS, SHARED

SAME, OTHERS, ZOO, DIFFERENT, DIGITS = (
    "ResNet20, one task",
    "Other networks, one task",
    "ResNet18 of the zoo, one task",
    "Different knowledge",
    "Digits, different knowledge",
)


@dataclass(frozen=True)
class ParentSet:
    """Some parents of one architecture, and what they were trained on.

    Attributes
    ----------
    title
        Heading of its column.
    kind
        Title of the table in which it stands.
    data
        Name of the data set.
    files
        Own checkpoints by name, or other people's by their path.
    architecture
        Other people's network; own checkpoints know theirs.
    classes
        Other people's: which labels each parent's outputs stand for, where they differ.
    mean, std
        Other people's: how their images were normalised.
    differ
        Whether the parents know different labels.
    batch_norm
        Whether they have BatchNorm.
    folder
        Where own checkpoints lie, if not in checkpoints/.
    fold
        Which fifth of the training images takes the place of the test images; none where it is None.
    """

    title: str
    kind: str
    data: str
    files: tuple[str, ...]
    architecture: str | None = None
    classes: tuple[str, ...] | None = None
    mean: str | None = None
    std: str | None = None
    differ: bool = False
    batch_norm: bool = True
    folder: Path | None = None
    fold: int | None = None

    @property
    def paths(self) -> list[Path]:
        """Where the checkpoints lie."""
        if self.architecture is None:
            return [(self.folder or CHECKPOINTS) / f"{name}.safetensors" for name in self.files]
        return [SHARED / "checkpoints" / name for name in self.files]

    @property
    def lacks(self) -> str:
        """What is to be done for the parents that are not there; nothing where all are."""
        absent = [name for name, path in zip(self.files, self.paths, strict=True) if not path.is_file()]
        if not absent:
            return ""
        if self.architecture is not None:
            return "set DEPFUSE_SHARED to the folder of real parents"
        return f"train with `python -m experiments run train_zoo {' '.join(absent)}`"


def _others(kind: str, title: str, network: str, data: str, files: Sequence[str], **more: object) -> ParentSet:
    normalised = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"} if data == "cifar10" else {}
    return ParentSet(title, kind, data, tuple(files), network, **{**normalised, **more})  # type: ignore[arg-type]


RESNET20 = "cifar_resnet_a.py:resnet20"
RUNS = ("run8-1", "run8-2", "run8-3", "run1", "run4")


def resnet20(*runs: str) -> ParentSet:
    """Choose some of other people's ResNet20s of CIFAR-10."""
    return _others(SAME, " + ".join(runs), RESNET20, "cifar10", [f"cifar10-resnet20/{run}.th" for run in runs])


def _zoo(title: str, data: str, network: str) -> ParentSet:
    return ParentSet(title, ZOO, data, tuple(f"{data}-{network}-seed{seed}" for seed in (0, 1)))


HALVES = ("classes0-4", "classes5-9")
SETS: dict[str, ParentSet] = {
    "resnet20-8-1-8-2": resnet20("run8-1", "run8-2"),
    "resnet20-8-1-8-3": resnet20("run8-1", "run8-3"),
    "resnet20-8-2-8-3": resnet20("run8-2", "run8-3"),
    "resnet20-1-4": resnet20("run1", "run4"),
    "resnet20-five": replace(resnet20(*RUNS), title="all five"),
    "resnet56-3-5": _others(
        OTHERS, "ResNet56 run3 + run5", "cifar_resnet_a.py:resnet56", "cifar10",
        ["cifar10-resnet56/run3.th", "cifar10-resnet56/run5.th"],
    ),
    "simplenet": _others(
        OTHERS, "SimpleNet 1 + 2", "simplenet.py:simplenet", "mnist",
        [f"mnist-simplenet/example_model_fusion_{number}.dat" for number in (1, 2)], batch_norm=False,
    ),
    "cifar100": replace(_zoo("ResNet20, CIFAR-100", "cifar100", "resnet20"), kind=OTHERS),
    "cifar10-resnet18": _zoo("ResNet18, CIFAR-10", "cifar10", "resnet18"),
    "cifar100-resnet18": _zoo("ResNet18, CIFAR-100", "cifar100", "resnet18"),
    "cifar10-resnet18-width16": _zoo("ResNet18 of width 16, CIFAR-10", "cifar10", "resnet18-width16"),
    "halves": _others(
        DIFFERENT, "halves", RESNET20, "cifar10", [f"cifar10-resnet20-halves/{half}.pt" for half in HALVES],
        classes=("0-4", "5-9"), differ=True,
    ),
    "own-halves": ParentSet(
        "own halves", DIFFERENT, "cifar10", tuple(f"cifar10-resnet20-{half}" for half in HALVES), differ=True
    ),
    "resnet18-halves": ParentSet(
        "halves, ResNet18", DIFFERENT, "cifar10", tuple(f"cifar10-resnet18-{half}" for half in HALVES), differ=True
    ),
    "shares": ParentSet(
        "four shares", DIFFERENT, "cifar10", tuple(f"cifar10-resnet20-share{number}" for number in range(4))
    ),
    "digits": ParentSet("pair 0", DIGITS, "digits", ("digits-a", "digits-b")),
    **{
        f"digits-skewed-{pair}": ParentSet(
            f"pair {pair}", DIGITS, "digits", tuple(f"digits-skewed-{pair}-{which}" for which in "ab")
        )
        for pair in range(1, 5)
    },
}  # fmt: skip
