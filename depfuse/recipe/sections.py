"""Sections of a recipe, one for each room."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, SerializeAsAny, field_validator

from depfuse.errors import RecipeError
from depfuse.recipe.criteria import CRITERIA, DISTANCES_TRIED, Activations, Criterion, Mixture, TapPosition
from depfuse.recipe.fields import Between, Choice, OneOf, Ratios, Registry, Section, setting
from depfuse.recipe.solvers import SOLVERS, Emd, Solver, facts, serving
from depfuse.recipe.starts import ActivationsStart
from depfuse.text import counted

MOST_PASSES = 100_000  # over images; of any more a digit too many was typed


class Through(Choice):
    """How more than two parents are matched."""


class Reference(Through):
    """Match all parents to one of them."""

    name: Literal["reference"] = "reference"
    parent: int | None = setting(
        None, "the parent that all others are matched to, counted from 1; the first if left out", ge=1
    )


class Universe(Through):
    """Match all parents through one universe of channels, consistently between any two of them (C2M3)."""

    name: Literal["universe"] = "universe"
    iterations: int = setting(100, "limit of sweeps over the parents", ge=1, search=Between(20, 200, log=True))
    restarts: int = setting(
        8, "parents to start from, of which the best is kept, by activations", ge=1, search=Between(1, 8)
    )


THROUGH = Registry(Reference, Universe)


class Align(Section):
    """Which channel of one parent is which channel of another."""

    criterion: Annotated[SerializeAsAny[Criterion], BeforeValidator(CRITERIA)] = setting(
        Activations(), "what makes two channels alike", search=OneOf()
    )
    solver: Annotated[SerializeAsAny[Solver], BeforeValidator(SOLVERS)] = setting(
        Emd(),
        "how costs become couplings",
        search=OneOf(by=("align.criterion", lambda criterion: (criterion, serving(criterion)))),
    )
    through: Annotated[SerializeAsAny[Through], BeforeValidator(THROUGH)] = setting(
        Reference(), "match all parents to a reference, or through a universe of channels"
    )
    choose: Literal["whole", "groups"] = setting(
        "whole",
        "where several matchings were found, take the one whose child agrees best with the parents' ensemble, or for "
        "each group the one with which it does: closer, and minutes slower",
    )
    allow_fixed: bool | None = setting(
        None,
        "where a part of the network could not be followed or proved, leave its channels in place, warn, and fuse the "
        "rest; if left out, refuse where that is more than half of the parameters that reach the output; where false, "
        "always refuse",
    )
    proof: Literal["full", "sampled"] = setting(
        "full",
        "how channel groups are proved: full tells failing ones and their parts one by one; sampled permutes all at "
        "once three times, so that a wrong one passes with a probability of at most 1/8, and fixes what 24 more runs "
        "of the network do not clear",
    )
    order: int | None = setting(
        None, "the parent, counted from 1, whose channel order the child has; the reference's if left out", ge=1
    )

    @property
    def compared(self) -> Activations | ActivationsStart:
        """How activations are compared: by the criterion, else by the start, else by default."""
        if isinstance(self.criterion, Activations):
            return self.criterion
        start = self.solver.start_from
        return start if isinstance(start, ActivationsStart) else Activations()

    @property
    def taps(self) -> TapPosition:
        """Where activations are taken."""
        return self.compared.taps

    @property
    def distances(self) -> tuple[str, ...]:
        """Distances between channels to try; each gives a candidate matching."""
        distance = self.compared.distance
        return DISTANCES_TRIED if distance == "best" else (distance,)

    @property
    def share(self) -> float:
        """Share of the activation cost in a mixture."""
        return self.criterion.share if isinstance(self.criterion, Mixture) else 0.0

    @property
    def watches(self) -> bool:
        """Whether parents are compared by their activations."""
        return self.criterion.name != "weights" or self.solver.start_from.name == "activations"

    @property
    def target(self) -> int:
        """Index, from 0, of the parent that all others are matched to."""
        parent = self.through.parent if isinstance(self.through, Reference) else None
        return (parent or 1) - 1

    @property
    def kept(self) -> int:
        """Index, from 0, of the parent whose channel order the child has."""
        return self.target if self.order is None else self.order - 1

    def check_numbers(self, parents: int) -> None:
        """Raise `RecipeError` where a parent's number is out of range."""
        reference = self.through.parent if isinstance(self.through, Reference) else None
        for name, number in (("align.through.parent", reference), ("align.order", self.order)):
            if number is not None and number > parents:
                raise RecipeError(
                    f"{name} {number} is out of range: the {parents} parents are numbered from 1 to {parents}"
                )


def _averages(solver: str) -> tuple[str, tuple[str, ...]]:
    return "", ("mean", "fisher") if facts(solver).gives == "permutation" else ()


class Merge(Section):
    """How matched parents become one network."""

    weights: tuple[float, ...] | None = setting(
        None,
        "one share per parent, in their order, summing to 1; equal shares if left out",
        search=Ratios(2.0),
    )
    weights_by: Literal["network", "stage", "group"] = setting(
        "network",
        "one set of weights for the network, or one for each stage or channel group, chosen from those on by how well "
        "the child agrees with the parents' ensemble on held-out calibration images, or by its loss on the labelled "
        "ones",
    )
    average: Literal["mean", "fisher"] = setting(
        "mean",
        "fisher: each parameter counts with its Fisher information, from calibration images without labels",
        source="Matena & Raffel 2022",
        search=OneOf(by=("align.solver", _averages)),
    )
    width_of: int | None = setting(
        None,
        "parents of unequal widths: the child is as wide as this one, counted from 1; the widest if left out",
        ge=1,
    )
    keep_worst: float = setting(
        0.0,
        "share of every group's pairs of channels, the least alike, to stand side by side in a wider child",
        ge=0.0,
        le=1.0,
    )
    keep_first: int = setting(
        0, "stages from the first on whose channels stand side by side; a stage has one resolution", ge=0
    )
    keep_last: int = setting(0, "stages up to the last whose channels stand side by side", ge=0)

    @field_validator("weights")
    @classmethod
    def _shares_sum_to_one(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is None:
            return None
        if any(not math.isfinite(w) or w < 0 for w in weights):
            raise ValueError(f"weights {weights} must be finite and not negative")
        if abs(sum(weights) - 1.0) > 1e-6:
            raise ValueError(f"weights {weights} sum to {sum(weights):g}; they must sum to 1")
        return weights

    @property
    def partly(self) -> bool:
        """Whether the child is wider than the parents, with some of their channels side by side."""
        return bool(self.keep_worst or self.keep_first or self.keep_last)

    def shares(self, parents: int) -> tuple[float, ...]:
        """Return one share per parent, summing to one."""
        if self.weights is None:
            return (1.0 / parents,) * parents
        if len(self.weights) != parents:
            raise RecipeError(f"{counted(len(self.weights), 'weight')} for {parents} parents: give one per parent")
        return self.weights


class Teach(Section):
    """How the parents are prepared as teachers of the child."""

    renorm: Literal["auto", "none", "reset"] = setting(
        "auto",
        "reset gives the parents BatchNorm statistics of the calibration images before anything else; auto does so "
        "where they know different labels, and where a child that learns from them finds that they tell different ones "
        "apart",
    )
    head: Literal["auto", "none", "always", "recall"] = setting(
        "auto",
        "the parents teach the child with one head over all their features, found on the calibration images without "
        "labels; auto: where they know different things and the child is refitted, distilled, or the best of a family; "
        "recall: always, from heads each of which counts for a class as far as it finds its images, for parents that "
        "never saw some of the classes",
    )
    labelled: int = setting(
        0,
        "calibration images, the first ones, whose labels are read: for one head over the features of all parents, "
        "which then teaches the child",
        unit="images",
        ge=0,
    )
    label_weight: float = setting(
        1.0,
        "what the mean loss on these labels counts for in finding the head, beside what is found without labels; 0.1 "
        "for 100 labels, 0.5 for 500",
        gt=0.0,
        le=10.0,
    )


class Train(Section):
    """How the child is trained on once it is fused."""

    distil: int = setting(
        0,
        "afterwards, epochs of training towards the parents' ensemble, without labels",
        unit="epochs",
        ge=0,
        le=MOST_PASSES,
    )
    self_training: int = setting(
        0,
        "then passes over the training images with soft labels, of the parents' ensemble for image and mirror image, "
        "and in the second half of the child as well; no label is read",
        unit="passes",
        ge=0,
        le=MOST_PASSES,
    )
    finetune: int = setting(0, "at last, epochs of training on the labels", unit="epochs", ge=0, le=MOST_PASSES)
    learning_rate: float = setting(
        0.05,
        "of finetune, at the end of its warm-up; the steps of distil are longer or shorter in proportion",
        gt=0.0,
        le=1e38,
    )

    @property
    def teaches(self) -> bool:
        """Whether the child is trained towards the parents' ensemble."""
        return self.distil > 0 or self.self_training > 0


class Calibration(Section):
    """The images that statistics are taken from and children are judged by."""

    images: int = setting(2000, "number of calibration images, drawn from the training set", unit="images", ge=0)
    batch_size: int = setting(
        250,
        "images per calibration batch, for speed and memory: the child does not depend on it",
        unit="images",
        ge=1,
    )
    augment: bool = setting(
        False,
        "statistics of BatchNorm, repair and rescale come from calibration images flipped and shifted",
        search=OneOf(),
    )
    mirror: bool | None = setting(
        None,
        "whether images and their mirror images mean the same, so that refits and trainings learn from both; if left "
        "out, grey images are not mirrored, and colour ones where the parents agree with themselves on mirror images",
    )
