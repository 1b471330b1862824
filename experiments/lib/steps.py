"""What is measured of some parents: a child by a recipe, or what a child is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from depfuse import Recipe
from depfuse.recipe.arrange import by_path, known_places
from experiments.lib.parents.sets import ParentSet
from experiments.lib.parents.trained import Training

Needs = Literal["all", "several parents", "BatchNorm", "the same labels"]


@dataclass(frozen=True)
class Baseline:
    """What a child is compared with.

    Attributes
    ----------
    what
        Name of the function in baselines.py.
    arguments
        Its further arguments.
    parents
        Least number of parents.
    images
        Whether it sees calibration images; where it does not, no seed changes it.
    long
        The option that asks for it, where it trains.
    """

    what: str
    arguments: Mapping[str, int] = field(default_factory=dict)
    parents: int = 2
    images: bool = True
    long: str = ""
    training = None
    count = None

    def suits(self, family: str, parents: ParentSet) -> bool:
        """Whether a set of parents has it."""
        return len(parents.files) >= self.parents

    def lacks(self) -> str:
        """Nothing: no setting is needed."""
        return ""

    @property
    def asks(self) -> Mapping[str, Any]:
        """Settings of a recipe that the number of images may contradict."""
        return {name: value for name, value in self.arguments.items() if name == "labelled"}

    @property
    def described(self) -> str:
        """The declaration as text: rows of another one are of no use."""
        return json.dumps([self.what, dict(self.arguments)])


@dataclass(frozen=True)
class Fusion:
    """A child by a recipe.

    Attributes
    ----------
    settings
        Those of the recipe that are not its defaults; not refitted where they do not say so.
    times
        How many times the parameters of a parent the child shall have; `keep_worst` is then found out.
    flops
        How many times the multiplications of a merged child it shall have instead.
    needs
        What the parents must be.
    count
        Number of calibration images; as the parents' family says where it is None.
    match, reset
        How many of them the matching sees, and how many the reset of BatchNorm; all where not given.
    renorm
        How the same matching is renormalised, where the recipe's own choice shall not be made anew; with `augmented`
        it is reset from the images flipped and shifted.
    tied
        Which channels are permuted, and which of them together; see `groups_of`.
    parents
        Number of them; other people's come in twos.
    training
        How they are trained, if not as the family's.
    only
        Families that it is for; all where empty.
    unlabelled
        How many training images it sees if it is trained on; all that are not held out where it is 0.
    foreign
        Data set from which all images come that it sees; the parents' own where empty.
    weigh
        What the parents count for: `counts` where they count by their numbers of training images.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    times: float = 0.0
    flops: float = 0.0
    needs: Needs = "all"
    count: int | None = None
    match: int | None = None
    reset: int | None = None
    renorm: str = ""
    tied: str = "groups"
    parents: int = 2
    training: Training | None = None
    only: tuple[str, ...] = ()
    unlabelled: int = 0
    foreign: str = ""
    weigh: Literal["", "counts"] = ""

    images = True

    @property
    def asks(self) -> Mapping[str, Any]:
        """Settings of a recipe that the number of images may contradict."""
        return self.settings

    @property
    def long(self) -> str:
        """The option that asks for it: training and a matching chosen for each group take minutes."""
        settings = by_path(self.settings)
        if any(settings.get(f"train.{name}") for name in ("distil", "self_training", "finetune")):
            return "--distil"
        return "--by-group" if settings.get("align.choose") == "groups" else ""

    def suits(self, family: str, parents: ParentSet) -> bool:
        """Whether it is something of its own on some parents."""
        if self.only and family not in self.only:
            return False
        if self.needs == "several parents":
            return len(parents.files) > 2
        if self.needs == "BatchNorm":
            return parents.batch_norm
        return self.needs == "all" or (parents.batch_norm and not parents.differ)

    def lacks(self) -> str:
        """Which setting the recipe does not have; nothing where it has all."""
        return next(filter(None, (_lacking(name, value) for name, value in self.settings.items())), "")

    @property
    def described(self) -> str:
        """The declaration as text: rows of another one are of no use."""
        own, plain = asdict(self), asdict(Fusion())
        told = {name: value for name, value in own.items() if value != plain[name] and name not in ("needs", "only")}
        return json.dumps(told, sort_keys=True)


Step = Baseline | Fusion


def _lacking(name: str, value: object) -> str:
    known = known_places(Recipe)
    for path, own in by_path({name: value}).items():
        if path not in known:
            return path
        choices = known[path][0].choices
        if choices and own not in choices:
            return f"{path}={own}"
    return ""
