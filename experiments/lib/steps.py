"""The steps of a fusion that ablate_child.py takes alone and together, and what they are compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from depfuse import Recipe
from depfuse.recipe.presets import published
from experiments.lib.parents.sets import ParentSet

Needs = Literal["all", "several parents", "the same labels"]


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
    trains
        Whether it trains.
    """

    what: str
    arguments: Mapping[str, int] = field(default_factory=dict)
    parents: int = 2
    images: bool = True
    trains: bool = False

    def suits(self, parents: ParentSet) -> bool:
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
        Those of the recipe that are not its defaults.
    times
        How many times the parameters of a parent the child shall have; `keep_worst` is then found out.
    needs
        What the parents must be.
    by_group
        Whether it chooses a matching for each group, which takes minutes.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    times: float = 0.0
    needs: Needs = "all"
    by_group: bool = False
    images: bool = True

    @property
    def asks(self) -> Mapping[str, Any]:
        """Settings of a recipe that the number of images may contradict."""
        return self.settings

    @property
    def trains(self) -> bool:
        """Whether the child is trained."""
        return bool(self.settings.get("distil") or self.settings.get("finetune"))

    def suits(self, parents: ParentSet) -> bool:
        """Whether it is something of its own on a set of parents."""
        if self.needs == "several parents":
            return len(parents.files) > 2
        return self.needs == "all" or (parents.batch_norm and not parents.differ)

    def lacks(self) -> str:
        """Which setting the recipe does not have; nothing where it has all."""
        return next(filter(None, (_lacking(name, value) for name, value in self.settings.items())), "")

    @property
    def described(self) -> str:
        """The declaration as text: rows of another one are of no use."""
        return json.dumps({**self.settings, **({"times": self.times} if self.times else {})}, sort_keys=True)


Step = Baseline | Fusion


def _lacking(name: str, value: object) -> str:
    field_ = Recipe.model_fields.get(name)
    if field_ is None:
        return name
    choices = get_args(field_.annotation) if get_origin(field_.annotation) is Literal else ()
    return f"{name}={value}" if choices and value not in choices else ""


RIDGE = {"refit": "ridge"}
FIRST_PASS = {**RIDGE, "refit_steps": 0}
MATCHED_FIRST_PASS = {**FIRST_PASS, "targets": "matched"}
UNIVERSE = {"universe": True}
SOFT = {"solver": "sinkhorn", "regularisation": 0.1}
# What 100 trials of `depfuse tune` on ResNet20 run8-1 + run8-2 found, without refit (experiments/studies/tune.py).
SEARCHED = {
    "criterion": "mixture",
    "mixture": 0.22,
    "distance": "cosine",
    "solver": "sinkhorn",
    "regularisation": 1.0,
    "renorm": "repair",
    "augment_statistics": True,
}
BY_GROUP = {"choose": "groups"}
LABELLED = {"labelled": 500}
DISTIL = {"distil": 1}

COMPARED: dict[str, Step] = {
    **{f"parent {n}": Baseline("parent", {"number": n}, max(n, 2), images=False) for n in range(1, 6)},
    "ensemble": Baseline("ensemble_as_it_is", images=False),
    "ensemble, statistics renewed": Baseline("ensemble_renewed"),
    "ensemble, one head without labels": Baseline("ensemble_with_joint_head"),
    "ensemble, one head from 500 labels": Baseline("ensemble_with_joint_head", {"labelled": 500}),
    "naive average": Baseline("naive", images=False),
    "naive average, reset": Baseline("naive_reset"),
    "best parent, head refitted": Baseline("best_parent"),
    "best parent, head refitted, distilled": Baseline("best_parent", {"epochs": 1}, trains=True),
}
PUBLISHED: dict[str, Step] = {
    name: Fusion(published(name).settings) for name in ("depgraph-ot-activations", "depgraph-ot-weights")
}
MERGED: dict[str, Step] = {
    "matched": Fusion({"renorm": "none"}),
    "matched, reset": Fusion(),
    "matched, rescale": Fusion({"renorm": "rescale"}),
    "matched, repair": Fusion({"renorm": "repair"}),
    "matched softly, reset": Fusion(SOFT),
    "matched as searched, repair": Fusion(SEARCHED),
    "matched by group, reset": Fusion(BY_GROUP, by_group=True),
    "universe, reset": Fusion(UNIVERSE, needs="several parents"),
    "parents renewed, matched, reset": Fusion({"parents_renorm": "reset"}, needs="the same labels"),
    "one head from 500 labels, matched, reset": Fusion(LABELLED),
    "worst 0.2 kept, reset": Fusion({"keep_worst": 0.2}),
    "1.2 times the parameters, reset": Fusion(times=1.2),
    "1.5 times the parameters, reset": Fusion(times=1.5),
    "matched, reset, distilled": Fusion(DISTIL),
}
REFITTED: dict[str, Step] = {
    "regmean": Fusion({"refit": "regmean"}),
    "least-squares": Fusion({"refit": "least-squares"}),
    "ridge to matched": Fusion(MATCHED_FIRST_PASS),
    "ridge to clusters": Fusion(FIRST_PASS),
    "ridge to matched, second pass": Fusion({**RIDGE, "targets": "matched"}),
    "ridge to clusters, second pass not augmented": Fusion({**RIDGE, "augment": False}),
    "ridge: clusters, second pass": Fusion(RIDGE),
}
TOGETHER: dict[str, Step] = {
    "ridge, matched by group": Fusion({**RIDGE, **BY_GROUP}, by_group=True),
    "ridge, universe": Fusion({**RIDGE, **UNIVERSE}, needs="several parents"),
    "ridge, heads side by side": Fusion({**RIDGE, "joint_head": "none"}),
    "ridge, parents as they are": Fusion({**RIDGE, "joint_head": "none", "parents_renorm": "none"}),
    "ridge, one head from 500 labels": Fusion({**RIDGE, **LABELLED}),
    "ridge, worst 0.2 kept": Fusion({**RIDGE, "keep_worst": 0.2}),
    "ridge, 1.2 times the parameters": Fusion(RIDGE, times=1.2),
    "ridge, 1.5 times the parameters": Fusion(RIDGE, times=1.5),
    "ridge, 1.5 times the parameters, one head from 500 labels": Fusion({**RIDGE, **LABELLED}, times=1.5),
    "ridge, distilled": Fusion({**RIDGE, **DISTIL}),
    "ridge, distilled for three epochs": Fusion({**RIDGE, "distil": 3}),
}
# Settings that a version of depfuse may not have; their steps are left out there.
OPTIONAL: dict[str, Step] = {
    "weights by stage, reset": Fusion({"weights_by": "stage"}),
    "weights by group, reset": Fusion({"weights_by": "group"}),
    "fisher average, reset": Fusion({"average": "fisher"}),
    "matched, statistics without data": Fusion({"renorm": "data-free"}),
    "statistics augmented, reset": Fusion({"augment_statistics": True}),
    "ridge, weights by stage": Fusion({**RIDGE, "weights_by": "stage"}),
    "ridge, weights by group": Fusion({**RIDGE, "weights_by": "group"}),
    "ridge, fisher average": Fusion({**RIDGE, "average": "fisher"}),
    "goal best": Fusion({"goal": "best"}),
}
STEPS: dict[str, Step] = {**COMPARED, **PUBLISHED, **MERGED, **REFITTED, **TOGETHER, **OPTIONAL}
