"""The entries of zoo.yaml, read and checked as a whole: whatever is wrong with one is said before any training."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from depfuse.data import DATA_SETS, parse_labels
from depfuse.errors import CheckpointError, DepfuseError, RecipeError
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into
from depfuse.models import build_network, check_input
from depfuse.train import TrainRecipe

ZOO = Path(__file__).with_name("zoo.yaml")
# Data set -> shape of its images and number of its classes, so that entries are checked without any image.
IMAGES = {
    "digits": ((1, 8, 8), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "mnist": ((1, 28, 28), 10),
}


class Share(BaseModel):
    """One of several disjoint parts of the training images; see `select_share`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int = Field(ge=0)
    of: int
    alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _is_there(self) -> Share:
        if self.number >= self.of:
            raise ValueError(f"share {self.number} of {self.of} does not exist: shares count from 0")
        return self


class Entry(BaseModel):
    """One network of the zoo."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    architecture: str
    data: str
    seed: int
    labels: str | None = None
    share: Share | None = None
    recipe: dict[str, Any] = {}
    device: Literal["any", "gpu"] = "any"
    ship: bool = False

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Entry:
        if self.labels is not None and self.share is not None:
            raise ValueError("labels and share contradict each other: give one of them")
        if self.data not in DATA_SETS:
            raise ValueError(f"data {self.data!r} is none of {', '.join(DATA_SETS)}")
        if "seed" in self.recipe:
            raise ValueError("recipe: the seed stands in the entry itself: leave it out here")
        for name in self.recipe:
            if name not in TrainRecipe.model_fields:
                raise ValueError(f"recipe: {_unknown(name, TrainRecipe.model_fields)}")
        TrainRecipe.create(seed=self.seed, **self.recipe)
        return self

    def check_network(self) -> None:
        """Raise `DepfuseError` unless the network can be built, takes the images, and has one output per label."""
        shape, classes = IMAGES[self.data]
        known = range(classes) if self.labels is None else list(parse_labels(self.labels))
        if known[-1] >= classes:
            raise RecipeError(f"labels {self.labels}: {self.data} has labels 0 to {classes - 1}")
        outputs = _count_outputs(self.architecture, shape)
        if outputs != len(known):
            raise RecipeError(f"{self.architecture} has {outputs} outputs for {len(known)} labels: say classes=...")


@cache
def _count_outputs(architecture: str, shape: tuple[int, ...]) -> int:
    """Count the outputs of a network for an image of a shape; many entries have the same."""
    with torch.device("meta"):  # shapes without values
        network, example = build_network(architecture).eval(), torch.zeros(2, *shape)
        check_input(network, example)
        return int(network(example).shape[1])


def read_zoo(path: Path = ZOO) -> dict[str, Entry]:
    """Name -> entry.

    Raises
    ------
    RecipeError
        The first entry that is wrong, and why: a field that does not exist, is missing or contradicts another one, of
        the training recipe too; a network that cannot be built or does not suit the data.
    """
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = "" if place is None else f", line {place.line + 1}"
        raise RecipeError(f"{path.name}{line}: {getattr(error, 'problem', None) or 'this is not YAML'}") from None
    if not isinstance(entries, dict):
        raise RecipeError(f"{path.name} has no entries: give some as NAME: {{architecture: ..., data: ..., seed: ...}}")
    found = {}
    for name, settings in entries.items():
        try:
            found[str(name)] = Entry.model_validate(settings)
            found[str(name)].check_network()
        except ValidationError as error:
            raise RecipeError(f"{path.name}: {name}: {_sentence(error)}") from None
        except DepfuseError as error:
            raise RecipeError(f"{path.name}: {name}: {error}") from None
    return found


def chosen(zoo: dict[str, Entry], names: list[str]) -> dict[str, Entry]:
    """The entries named, or all; `RecipeError` where one does not exist."""
    for name in names:
        if name not in zoo:
            raise RecipeError(f"{name} is not in the zoo{_meant(name, zoo) or ': choose from ' + ', '.join(zoo)}")
    return {name: zoo[name] for name in names or zoo}


def accuracy_of(path: Path, entry: Entry) -> float:
    """Accuracy (fraction) of a network that has been trained, as its card states it.

    Raises
    ------
    CheckpointError
        The card names another network than the entry, or contradicts the tensors.
    """
    checkpoint = read_checkpoint(path)
    card = checkpoint.card
    if card is None or not isinstance(card.metrics.get("accuracy"), float):
        raise CheckpointError(f"{path} has no card that states an accuracy: delete it to train it anew")
    for what, said, wanted in (
        ("architecture", card.architecture, entry.architecture),
        ("data", card.data, entry.data),
    ):
        if said != wanted:
            raise CheckpointError(f"{path}: {what} is {said} on its card and {wanted} in the zoo: delete one of them")
    load_into(build_network(entry.architecture), checkpoint)
    labels = IMAGES[entry.data][1] if entry.labels is None else len(parse_labels(entry.labels))
    if card.classes is not None and len(card.classes) != labels:
        raise CheckpointError(f"{path} has {labels} outputs, but its card names {len(card.classes)} classes")
    return float(card.metrics["accuracy"])


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a key that stands twice, of which the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if str(name) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", key.start_mark)
            seen.add(str(name))
        return super().construct_mapping(node, deep)


def _sentence(error: ValidationError) -> str:
    """What is wrong with the first wrong field."""
    first = error.errors()[0]
    *above, name = [str(part) for part in first["loc"]] or [""]
    place = "".join(f"{part}: " for part in above)
    if first["type"] == "extra_forbidden":
        return place + _unknown(name, (Share if above else Entry).model_fields)
    if first["type"] == "missing":
        return f"{place}the field {name!r} is missing"
    return f"{place}{name + ': ' if name else ''}{first['msg'].removeprefix('Value error, ')}"


def _unknown(name: str, known: Iterable[str]) -> str:
    return f"there is no field {name!r}{_meant(name, known) or ': choose from ' + ', '.join(known)}"


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}?" if near else ""
