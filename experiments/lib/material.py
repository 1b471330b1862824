"""The networks and the data of a set of parents, and what is read off both: groups, images, ensemble, teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from depfuse.cli.inputs import Inputs, read_inputs, read_template
from depfuse.cli.options import DataOptions
from depfuse.data import DataSet, Loader, Split, calibration_loader, load_data, select_share
from depfuse.data.loader import calibration_order
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import mean_logits
from depfuse.errors import CheckpointError, RecipeError
from depfuse.fusion.calibration import for_statistics
from depfuse.groups import ChannelGroups, find_groups, prove_groups
from depfuse.recipe import Recipe
from depfuse.teach.teachers import Teachers, prepare_teachers
from experiments.lib.data_files import files_of
from experiments.lib.parents.digits import without_fold
from experiments.lib.parents.sets import SETS, ParentSet
from experiments.lib.places import SHARED

HELD_OUT = 5000
BATCH = 500


def data_files(sets: Sequence[ParentSet], given: Mapping[str, str]) -> dict[str, str]:
    """Map each data set of some parents to what `load_data` takes; see `files_of`.

    Raises
    ------
    CheckpointError
        Parents are not there.
    """
    for parents in sets:
        if parents.lacks:
            path = next(path for path in parents.paths if not path.is_file())
            raise CheckpointError(f"{path}, a parent of {parents.title}, is not there: {parents.lacks}")
    return files_of((parents.data for parents in sets), given)


@dataclass(frozen=True, eq=False)
class Material:
    """The networks of a set, with their template where labels differ, and their data.

    `foreign` says that the training images are of another data set: none of them is held out.
    """

    parents: ParentSet
    inputs: Inputs
    template: nn.Module | None
    foreign: bool = False

    @cached_property
    def groups(self) -> ChannelGroups:
        """Proved channel groups."""
        example = self.inputs.data.example(device=self.inputs.device)
        return prove_groups(self.inputs.models[0], find_groups(self.inputs.models[0], example), example)

    @property
    def shares(self) -> tuple[float, ...]:
        """Equal shares."""
        return (1.0 / len(self.inputs.models),) * len(self.inputs.models)

    @property
    def shares_by_counts(self) -> tuple[float, ...]:
        """Shares by numbers of training images, by the clients' cards; `CheckpointError` where these do not tell."""
        counts = []
        for checkpoint in self.inputs.checkpoints:
            split = {} if checkpoint.card is None else checkpoint.card.recipe or {}
            if not {"number", "of"} <= split.keys():
                raise CheckpointError(f"{checkpoint.path} has no card that says which share of the images it saw")
            share = {"alpha": split.get("alpha"), "seed": split.get("seed", 0)}
            counts.append(len(select_share(self.inputs.data, split["number"], split["of"], **share).train))
        return tuple(count / sum(counts) for count in counts)

    def of_foreign(self, file: str) -> Material:
        """Take training images from another data set, without labels and as these networks take them."""
        train = replace(load_data(file).train, labels=None)
        inputs = replace(self.inputs, data=replace(self.inputs.data, train=train))
        return replace(self, inputs=inputs, foreign=True)

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

    def to_train_on(self, images: int, seed: int, count: int) -> DataSet:
        """Select training images that are not held out, those of calibration first: `count` of them, all where 0."""
        data = self.without_held_out(images, seed)
        return replace(data, train=data.train.take(slice(0, count))) if count else data

    def _parted(self, images: int, seed: int) -> tuple[Split | None, Split]:
        whole = len(self.inputs.data.train)
        kept = whole - min(HELD_OUT, whole // 4)
        if images > kept or self.foreign:
            order = calibration_order(whole, seed)
            return None, self.inputs.data.train.take(order) if self.foreign else self.inputs.data.train
        drawn = calibration_loader(self.inputs.data, whole, seed=seed)  # calibration takes its first ones
        return Split(drawn.images[kept:], drawn.labels[kept:]), Split(drawn.images[:kept], drawn.labels[:kept])

    def _loader(self, split: Split, limit: int) -> Loader:
        # Files may be sorted by class: the first images would be of one.
        part = split.take(torch.arange(limit) * len(split) // limit) if 0 < limit < len(split) else split
        return Loader(part, self.inputs.data.preprocessing, batch_size=BATCH, device=self.inputs.device)


def shared_material(name: str, device: torch.device | str = "cpu") -> Material:
    """Read a set of other people's parents, as all scripts that take no data of their own do."""
    return read_material(SETS[name], data_files([SETS[name]], {})[SETS[name].data], torch.device(device))


def read_material(parents: ParentSet, file: str, device: torch.device) -> Material:
    """Read the networks and the data of a set; the last one is kept while its files are, since cells come set by set.

    What is measured must not change its networks.
    """
    there = [path for path in (*parents.paths, Path(file)) if path.is_file()]
    return _read(parents, file, device, tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in there))


@lru_cache(maxsize=1)
def _read(parents: ParentSet, file: str, device: torch.device, _written: tuple[tuple[int, int], ...]) -> Material:
    architecture = None if parents.architecture is None else f"{SHARED}/models/{parents.architecture}"
    options = DataOptions(data=file, mean=parents.mean, std=parents.std)
    inputs = read_inputs(parents.paths, architecture, options, device, parents.classes, fused=True)
    if parents.fold is not None:
        inputs = replace(inputs, data=without_fold(inputs.data, parents.fold))
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


class Probabilities(nn.Module):
    """An ensemble whose outputs are the logarithms of its class probabilities."""

    def __init__(self, members: Ensemble) -> None:
        super().__init__()
        self.models, self._members = nn.ModuleList(members.networks), members

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (N, labels)."""
        return self._members.combine([model(images) for model in self.models]).clamp_min(1e-12).log()


def ensemble(of: Material, models: Sequence[nn.Module] | None = None) -> Joint:
    """The parents' ensemble, or that of other networks with the same labels."""
    return Joint(of.inputs.models if models is None else models, of.shares, of.inputs.labels)


def teachers(of: Material, calibration: Loader, recipe: Recipe | None = None, *, mirrored: bool = False) -> Teachers:
    """The parents as they teach a refitted child, or that of another recipe; see `prepare_teachers`."""
    recipe = recipe or Recipe(refit="ridge")
    parents = Ensemble(of.inputs.models, of.shares, of.inputs.labels)
    statistics = for_statistics(calibration, recipe.calibration, recipe.seed)
    return prepare_teachers(
        parents, recipe.teach, calibration, statistics, of.template, learns=recipe.learns, mirrored=mirrored
    )
