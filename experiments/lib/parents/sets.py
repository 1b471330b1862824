"""The sets of parents that ablations run on, and the images that their children are judged by.

Own parents lie in checkpoints/, those of other people in the folder that DEPFUSE_SHARED names (see parents.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from depfuse.cli.inputs import Inputs, read_inputs, read_template
from depfuse.cli.options import DataOptions
from depfuse.data import DATA_SETS, DataSet, Loader, Split, calibration_loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import mean_logits
from depfuse.errors import CheckpointError, DataError, RecipeError
from depfuse.groups import ChannelGroups, find_groups, prove_groups
from depfuse.recipe import Recipe
from depfuse.teach.teachers import Teachers, prepared
from experiments.lib.parents.shared import PAIRS, unpacked
from experiments.lib.places import CHECKPOINTS, SHARED

HELD_OUT = 5000
BATCH = 500
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
        return f"train with `python -m experiments.lib.parents.train_zoo {' '.join(absent)}`"


def _others(kind: str, title: str, network: str, data: str, files: Sequence[str], **more: object) -> ParentSet:
    normalised = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"} if data == "cifar10" else {}
    return ParentSet(title, kind, data, tuple(files), network, **{**normalised, **more})  # type: ignore[arg-type]


def _pair(key: str, kind: str, **more: object) -> ParentSet:
    pair = PAIRS[key]
    return _others(kind, pair.name.removeprefix("ResNet20 "), pair.architecture, pair.data, pair.files, **more)


RESNET20 = "cifar_resnet_a.py:resnet20"


def _zoo(title: str, data: str, network: str) -> ParentSet:
    return ParentSet(title, ZOO, data, tuple(f"{data}-{network}-seed{seed}" for seed in (0, 1)))


RUNS = ("run8-1", "run8-2", "run8-3", "run1", "run4")
HALVES = ("classes0-4", "classes5-9")
SETS: dict[str, ParentSet] = {
    **{key: _pair(key, SAME) for key in PAIRS if key.startswith("resnet20")},
    "resnet20-five": _others(SAME, "all five", RESNET20, "cifar10", [f"cifar10-resnet20/{run}.th" for run in RUNS]),
    "resnet56-3-5": _pair("resnet56-3-5", OTHERS),
    "simplenet": _pair("simplenet", OTHERS, batch_norm=False),
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


def data_files(sets: Sequence[ParentSet], given: Mapping[str, str]) -> dict[str, str]:
    """Name -> what `load_data` takes, for all data of some sets; the CIFARs are unpacked where nothing is given.

    Raises
    ------
    CheckpointError
        Parents are not there.
    DataError
        A file is not there, or is given for an unknown data set.
    """
    for parents in sets:
        if parents.lacks:
            path = next(path for path in parents.paths if not path.is_file())
            raise CheckpointError(f"{path}, a parent of {parents.title}, is not there: {parents.lacks}")
    if unknown := [name for name in given if name not in DATA_SETS]:
        raise DataError(f"--npz {unknown[0]} is no data set: give one of {', '.join(DATA_SETS)}, as in cifar100=FILE")
    found = {}
    for name in dict.fromkeys(parents.data for parents in sets):
        if name in given or name == "digits":
            found[name] = given.get(name, name)
        elif not (SHARED / "tools").is_dir():
            raise DataError(f"{name} is not there: give --npz {name}=FILE, or set DEPFUSE_SHARED")
        else:
            found[name] = str(SHARED / "data" / "mnist.npz" if name == "mnist" else unpacked(name))
        if name != "digits" and not Path(found[name]).is_file():
            raise DataError(f"there is no file {found[name]}: --npz takes data sets as {name}=FILE")
    return found


@dataclass(frozen=True, eq=False)
class Material:
    """The networks of a set, with their template where labels differ, and their data."""

    parents: ParentSet
    inputs: Inputs
    template: nn.Module | None

    @cached_property
    def groups(self) -> ChannelGroups:
        """Proved channel groups."""
        example = self.inputs.data.example(device=self.inputs.device)
        return prove_groups(self.inputs.models[0], find_groups(self.inputs.models[0], example), example)

    @property
    def shares(self) -> tuple[float, ...]:
        """Equal shares."""
        return (1.0 / len(self.inputs.models),) * len(self.inputs.models)

    def test(self, limit: int) -> Loader:
        """The test images; `limit` of them where it is not 0."""
        return self._loader(self.inputs.data.test, limit)

    def held_out(self, images: int, seed: int, limit: int) -> Loader | None:
        """5,000 training images, or a quarter of them, that are not among the `images` of the calibration.

        They are the same for every number of calibration images. None where calibration takes nearly all images.
        """
        split, _ = self._parted(images, seed)
        return None if split is None else self._loader(split, limit)

    def without_held_out(self, images: int, seed: int) -> DataSet:
        """The data without these images, to train on."""
        return replace(self.inputs.data, train=self._parted(images, seed)[1])

    def _parted(self, images: int, seed: int) -> tuple[Split | None, Split]:
        whole = len(self.inputs.data.train)
        kept = whole - min(HELD_OUT, whole // 4)
        if images > kept:
            return None, self.inputs.data.train
        drawn = calibration_loader(self.inputs.data, whole, seed=seed)  # calibration takes its first ones
        return Split(drawn.images[kept:], drawn.labels[kept:]), Split(drawn.images[:kept], drawn.labels[:kept])

    def _loader(self, split: Split, limit: int) -> Loader:
        # Files may be sorted by class: the first images would be of one.
        part = split.take(torch.arange(limit) * len(split) // limit) if 0 < limit < len(split) else split
        return Loader(part, self.inputs.data.preprocessing, batch_size=BATCH, device=self.inputs.device)


@lru_cache(maxsize=1)
def material(name: str, file: str, device: torch.device) -> Material:
    """The networks and the data of a set by its name; the last one is kept, since cells come set by set."""
    return read_material(SETS[name], file, device)


def read_material(parents: ParentSet, file: str, device: torch.device) -> Material:
    """Read the networks and the data of a set."""
    architecture = None if parents.architecture is None else f"{SHARED}/models/{parents.architecture}"
    options = DataOptions(data=file, mean=parents.mean, std=parents.std)
    inputs = read_inputs(parents.paths, architecture, options, device, parents.classes)
    if (inputs.labels is not None) != parents.differ:
        raise RecipeError(
            f"{parents.title} is declared with `differ={parents.differ}`, which its checkpoints contradict"
        )
    return Material(parents, inputs, read_template(inputs, None, None)[1])


class Joint(nn.Module):
    """Networks as one: the share-weighted mean of their logits, over all labels.

    Where their labels differ, the heads stand side by side; a single network gives labels that it does not know no
    probability.
    """

    def __init__(self, models: Sequence[nn.Module], shares: Sequence[float], labels: LabelSets | None = None) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.shares, self.labels = tuple(shares), labels

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, labels)."""
        outputs = [model(images) for model in self.models]
        if self.labels is not None and len(outputs) == 1:
            return self.labels.of_outputs(outputs)[0]
        return mean_logits(outputs, self.shares, self.labels)


def ensemble(of: Material, models: Sequence[nn.Module] | None = None) -> Joint:
    """The parents' ensemble, or that of other networks with the same labels."""
    return Joint(of.inputs.models if models is None else models, of.shares, of.inputs.labels)


def teachers(of: Material, calibration: Loader, recipe: Recipe | None = None) -> Teachers:
    """The parents as they teach a refitted child, or that of another recipe."""
    inputs = of.inputs
    return prepared(inputs.models, recipe or Recipe(refit="ridge"), of.shares, calibration, inputs.labels, of.template)
