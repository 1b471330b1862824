"""One frozen, validated description of one fusion."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from depfuse.align.solvers import SOLVERS
from depfuse.errors import RecipeError
from depfuse.recipe.reads import is_read, only_read, why_not_read
from depfuse.renorm.registry import METHODS

SOFT = ("sinkhorn", "unbalanced")  # solvers that give plans
MIXING = ("cca", "zip-it")  # and those that give linear maps
Criterion = Literal["activations", "weights", "mixture"]
if TYPE_CHECKING:
    from typing import TypeAlias

    Solver: TypeAlias = str
    Start: TypeAlias = str
    Renorm: TypeAlias = str
else:
    Solver = Literal[tuple(SOLVERS)]
    Start = Literal[("none", "identity", "activations", *(name for name in SOLVERS if name not in (*SOFT, *MIXING)))]
    Renorm = Literal[("auto", "none", *METHODS)]
DISTANCES_TRIED = ("cosine", "pearson", "cosine-pearson", "scaled")
Distance = Literal["best", "cosine", "pearson", "cosine-pearson", "scaled", "euclidean"]
TapPosition = Literal["after", "before", "both"]
Choose = Literal["whole", "groups"]
Masses = Literal["best", "whole", "equal", "free"]
ParentsRenorm = Literal["auto", "none", "reset"]
JointHead = Literal["auto", "none", "always"]
Refit = Literal["auto", "none", "ridge", "regmean", "least-squares"]
Targets = Literal["clusters", "matched"]
WeightsBy = Literal["network", "stage", "group"]
Average = Literal["mean", "fisher"]
Goal = Literal["child", "best"]


class Recipe(BaseModel):
    """How parents become a child; everything but the parents and the data.

    Parameters are validated on construction; a contradictory recipe raises `RecipeError`
    through `Recipe.create`, and so does one with a setting that nothing reads (`depfuse.recipe.reads`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    criterion: Criterion = Field(default="activations", description="what makes two channels alike")
    solver: Solver = Field(default="emd", description="how costs become couplings")
    distance: Distance = Field(
        default="best",
        description="how activations of two channels are compared; best tries four and keeps the one whose child "
        "agrees best with the parents' ensemble on the calibration images, and is scaled where refit ridge aims at "
        "clusters",
    )
    taps: TapPosition = Field(default="after", description="activations before or after the non-linearity, or both")
    mixture: float = Field(default=0.5, ge=0.0, le=1.0, description="share of the activation cost in a mixture")
    choose: Choose = Field(
        default="whole",
        description="where several matchings were found, take the one whose child agrees best with the parents' "
        "ensemble, or for each group the one with which it does: closer, and minutes slower",
    )
    regularisation: float = Field(
        default=0.01,
        gt=0.0,
        description="Sinkhorn's, relative to the cost's scale; that of cca, relative to the channels' mean variance",
    )
    strictness: float = Field(
        default=3.0, gt=0.0, description="how strictly unbalanced transport keeps masses, relative to the cost's scale"
    )
    masses: Masses = Field(
        default="best",
        description="parents of unequal widths, solver emd: whole splits no channel of the wider one, equal gives all "
        "channels of a network one mass, free lets each of the wider one go where it fits best; best tries all, as "
        "with distances",
    )
    width_of: int | None = Field(
        default=None,
        ge=1,
        description="parents of unequal widths: the child is as wide as this one, counted from 1; the widest if left "
        "out",
    )
    restarts: int = Field(
        default=8,
        ge=1,
        description="local optima of a weight matching to choose from, at most; large networks get fewer",
    )
    start: Start = Field(
        default="none",
        description="what an iterative solver starts from: activations is their assignment, a solver's name its result",
    )
    structure: float = Field(
        default=0.5, ge=0.0, le=1.0, description="share of the correlations within each parent in fused-gromov"
    )
    iterations: int = Field(
        default=100, ge=1, description="limit of solvers that iterate over all groups, and of sweeps over parents"
    )
    weights: tuple[float, ...] | None = Field(
        default=None, description="one share per parent, in their order, summing to 1; equal shares if left out"
    )
    weights_by: WeightsBy = Field(
        default="network",
        description="one set of weights for the network, or one for each stage or channel group, chosen from those on "
        "by how well the child agrees with the parents' ensemble on held-out calibration images, or by its loss on the "
        "labelled ones",
    )
    average: Average = Field(
        default="mean",
        description="fisher: each parameter counts with its Fisher information, from calibration images without labels",
    )
    universe: bool = Field(
        default=False,
        description="match all parents through one universe of channels, consistently between any two of them, instead "
        "of to one parent",
    )
    reference: int | None = Field(
        default=None,
        ge=1,
        description="the parent that all others are matched to, counted from 1; the first if left out",
    )
    order: int | None = Field(
        default=None,
        ge=1,
        description="the parent, counted from 1, whose channel order the child has; the reference's if left out",
    )
    keep_worst: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="share of every group's pairs of channels, the least alike, to stand side by side in a wider child",
    )
    keep_first: int = Field(
        default=0,
        ge=0,
        description="stages from the first on whose channels stand side by side; a stage has one resolution",
    )
    keep_last: int = Field(default=0, ge=0, description="stages up to the last whose channels stand side by side")
    refit: Refit = Field(
        default="auto",
        description="solve the layers in closed form for what the parents do; ridge, layer after layer, is the best; "
        "auto: ridge for convolutional networks with BatchNorm or without normalisation, where there are calibration "
        "images and the solver gives permutations, none elsewhere; which it is, is said",
    )
    targets: Targets = Field(
        default="clusters",
        description="what refit ridge aims at: mixtures of the parents' channels that keep what matters to their "
        "outputs, or the means of matched channels",
    )
    refit_steps: int = Field(
        default=160,
        ge=0,
        description="after refit ridge, steps of all layers together towards the ensemble's outputs; 0 for none",
    )
    augment: bool = Field(
        default=True, description="these steps see the calibration images flipped and shifted anew each time"
    )
    renorm: Renorm = Field(
        default="auto",
        description="auto: reset where the network has BatchNorm, none elsewhere and after refit ridge, which sets it; "
        "repair gives every layer the parents' means and deviations, with BatchNorm or without; rescale gives "
        "the deviations only, data-free those that the weights alone tell",
    )
    augment_statistics: bool = Field(
        default=False,
        description="statistics of BatchNorm, repair and rescale come from calibration images flipped and shifted",
    )
    parents_renorm: ParentsRenorm = Field(
        default="auto",
        description="reset gives the parents BatchNorm statistics of the calibration images before anything else; auto "
        "does so where they know different labels, and where a child that learns from them finds that they tell "
        "different ones apart",
    )
    joint_head: JointHead = Field(
        default="auto",
        description="the parents teach the child with one head over all their features, found on the calibration "
        "images without labels; auto: where they know different things and the child is refitted, distilled, or the "
        "best of a family",
    )
    labelled: int = Field(
        default=0,
        ge=0,
        description="calibration images, the first ones, whose labels are read: for one head over the features of all "
        "parents, as joint_head, which then teaches the child",
    )
    goal: Goal = Field(
        default="child",
        description="best makes a family of candidates (each parent with its head refitted, merged from each stage on, "
        "averages), each refitted, and keeps the one that agrees best with the ensemble on held-out calibration images",
    )
    distil: int = Field(
        default=0, ge=0, description="afterwards, epochs of training towards the parents' ensemble, without labels"
    )
    finetune: int = Field(default=0, ge=0, description="at last, epochs of training on the labels")
    learning_rate: float = Field(
        default=0.05,
        gt=0.0,
        description="of finetune, at the end of its warm-up; the steps of distil are longer or shorter in proportion",
    )
    calibration: int = Field(
        default=2000, ge=0, description="number of calibration images, drawn from the training set"
    )
    batch_size: int = Field(
        default=250,
        ge=1,
        description="images per calibration batch, for speed and memory: the child does not depend on it",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="seed of every random choice")
    parents_from: Literal[1] = Field(
        default=1,
        description="what reference and order count from; recipes of before, which do not say it, counted from 0",
        json_schema_extra={"option": False},
    )

    @model_validator(mode="before")
    @classmethod
    def _without_polish(cls, settings: Any) -> Any:
        """Read a recipe of before that says whether the child is polished."""
        if not isinstance(settings, dict) or "polish" not in settings:
            return settings
        polish, best = settings["polish"], settings.get("goal") == "best"
        if polish not in (None, best):
            raise ValueError(
                "goal best always ends with a step towards the ensemble: leave out polish"
                if best
                else f"there is no polish any more ({polish}): refit ridge gains more; leave it out"
            )
        return {name: value for name, value in settings.items() if name != "polish"}

    @model_validator(mode="before")
    @classmethod
    def _counted_from_one(cls, settings: Any) -> Any:
        """Read a recipe that counts parents from 0."""
        if not isinstance(settings, dict) or settings.get("parents_from") != 0:
            return settings
        from_one = {name: settings[name] + 1 for name in ("reference", "order") if isinstance(settings.get(name), int)}
        return {**settings, **from_one, "parents_from": 1}

    @model_validator(mode="after")
    def _every_setting_is_read(self) -> Recipe:
        settings = self.settings
        for name, info in type(self).model_fields.items():
            if settings[name] != info.default and not is_read(name, settings):
                value = settings[name]
                raise ValueError(
                    f"{name} {value} would be ignored: it needs {why_not_read(name, settings)}; leave {name} out, or "
                    "change that"
                )
        return self

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

    @model_validator(mode="after")
    def _start_is_another(self) -> Recipe:
        if self.start == self.solver:
            raise ValueError(f"start {self.start} is the solver itself: name another one, or leave it out")
        return self

    @model_validator(mode="after")
    def _matched_in_one_way(self) -> Recipe:
        if self.universe and self.choose == "groups":
            raise ValueError("a universe is chosen as a whole: leave out --universe, or --choose groups")
        return self

    @model_validator(mode="after")
    def _apart_and_renormalised(self) -> Recipe:
        if self.keeps_apart and self._compares:
            raise ValueError(
                f"renorm {self.renorm} is for channels that are all merged: choose reset, or keep none apart"
            )
        return self

    @model_validator(mode="after")
    def _renormalised_from_what_it_needs(self) -> Recipe:
        if self.renorm == "data-free" and self.refits:
            raise ValueError("renorm data-free is for weights that are averaged: leave out --refit, or choose another")
        return self

    @model_validator(mode="after")
    def _labelled_images_are_calibration_images(self) -> Recipe:
        if self.labelled > self.calibration:
            raise ValueError(
                f"labelled {self.labelled} is more than the {self.calibration} calibration images: give more"
            )
        if self.labelled and self.joint_head == "none":
            raise ValueError("labelled images are read for one head of all parents: leave out joint_head none")
        return self

    @model_validator(mode="after")
    def _weights_can_be_chosen(self) -> Recipe:
        if self.weights_by != "network" and self.calibration < 4:
            raise ValueError(
                f"weights_by {self.weights_by} needs at least 4 calibration images, not {self.calibration}: give 1000"
            )
        return self

    @model_validator(mode="after")
    def _averaged_channel_by_channel(self) -> Recipe:
        if self.average == "mean":
            return self
        if self.solver in (*SOFT, *MIXING):
            raise ValueError(
                f"average {self.average} needs couplings that are permutations, and solver {self.solver} gives none: "
                "choose emd"
            )
        if self.keeps_apart:
            raise ValueError(
                f"average {self.average} is for channels that are all merged: choose mean, or keep none apart"
            )
        if self.calibration < 2:
            raise ValueError(
                f"average {self.average} needs calibration images, not {self.calibration}: give at least 2, better 500"
            )
        return self

    @model_validator(mode="after")
    def _best_of_a_family(self) -> Recipe:
        if self.goal == "child":
            return self
        if self._compares:
            raise ValueError(
                f"goal best renews its candidates' statistics itself: leave out --renorm {self.renorm}"
            )
        if self.refit in ("regmean", "least-squares"):
            raise ValueError(f"goal best refits its candidates by ridge: leave out --refit {self.refit}")
        if self.solver in (*SOFT, *MIXING):
            raise ValueError(f"goal best needs couplings that are permutations: leave out --solver {self.solver}")
        if self.keeps_apart:
            raise ValueError("goal best is of the parents' width: leave out --keep-worst, --keep-first and --keep-last")
        return self

    @model_validator(mode="after")
    def _mixed_by_maps(self) -> Recipe:
        if self.solver not in MIXING:
            return self
        if self.refits:
            raise ValueError(
                f"refit {self.refit} needs couplings that are permutations, and solver {self.solver} mixes channels: "
                "choose solver emd, or refit none"
            )
        if self.keeps_apart:
            raise ValueError(
                f"channels are kept apart by pairs, and solver {self.solver} finds none: choose solver emd, or leave "
                "out --keep-worst, --keep-first and --keep-last"
            )
        if self.solver == "cca" and self._compares:
            raise ValueError(
                f"renorm {self.renorm} compares a child with its parents channel by channel, and solver cca mixes "
                "them: choose reset or none"
            )
        if self.solver == "zip-it" and self.weights_by != "network":
            raise ValueError(f"solver zip-it zips by one share per parent: leave out --weights-by {self.weights_by}")
        if self.choose == "groups":
            raise ValueError(f"solver {self.solver} finds one solution: leave out --choose groups")
        return self

    @classmethod
    def create(cls, **settings: Any) -> Recipe:
        """Build a recipe; a `RecipeError` names the first setting that is wrong and why."""
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f" setting {part}" for part in first["loc"][:1])
            raise RecipeError(f"recipe{where}: {first['msg'].removeprefix('Value error, ')}") from None

    def changed(self, **settings: Any) -> Recipe:
        """The recipe with other settings, validated as `create` does.

        What nothing reads any more goes back to its default; of the settings that are given, that is refused.
        """
        return Recipe.with_read({**self.settings, **settings}, keep=settings)

    @classmethod
    def with_read(cls, settings: Mapping[str, Any], keep: Collection[str] = ()) -> Recipe:
        """Build a recipe of those settings that are read, and of some that are refused if they are not."""
        defaults = {name: info.default for name, info in cls.model_fields.items()}
        return cls.create(**only_read(settings, defaults, keep))

    @property
    def settings(self) -> dict[str, Any]:
        """Name -> value of all settings."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @property
    def distances(self) -> tuple[str, ...]:
        """Distances to compare channels by; each gives a matching to choose from.

        A child refitted to clusters owes little to the matching: seconds of choosing would change nothing there.
        """
        if self.distance != "best":
            return (self.distance,)
        by_clusters = self.refit == "ridge" and self.targets == "clusters" and self.choose == "whole"
        return ("scaled",) if by_clusters else DISTANCES_TRIED

    @property
    def refits(self) -> bool:
        """Whether the child is refitted; not known of `auto`, which is another method once it is resolved."""
        return self.refit not in ("auto", "none")

    @property
    def renorm_after(self) -> Renorm:
        """How the child is renormalised once it has been refitted."""
        return "none" if self.renorm == "auto" and self.refit == "ridge" else self.renorm

    @property
    def renorm_alone(self) -> Renorm:
        """How networks are renormalised of which there may be no parents to repair them by: to compare them."""
        return "auto" if self._compares or self.refit == "ridge" else self.renorm

    @property
    def _compares(self) -> bool:
        """Whether the child is compared with its parents to be renormalised."""
        return self.renorm in METHODS and METHODS[self.renorm].parents

    @property
    def learns(self) -> bool:
        """Whether the child learns from the parents' outputs, not from their weights alone."""
        return self.refits or self.distil > 0 or self.goal == "best"

    @property
    def keeps_apart(self) -> bool:
        """Whether the child is wider than the parents, with some of their channels side by side."""
        return bool(self.keep_worst or self.keep_first or self.keep_last)

    @property
    def target(self) -> int:
        """Index, from 0, of the parent that all others are matched to."""
        return (self.reference or 1) - 1

    @property
    def kept(self) -> int:
        """Index, from 0, of the parent whose channel order the child has."""
        return self.target if self.order is None else self.order - 1

    def check_numbers(self, parents: int) -> None:
        """Raise `RecipeError` where a parent is named that is not there."""
        for name, number in (("reference", self.reference), ("order", self.order)):
            if number is not None and number > parents:
                raise RecipeError(
                    f"--{name} {number} is out of range: the {parents} parents are numbered from 1 to {parents}"
                )

    def shares(self, parents: int) -> tuple[float, ...]:
        """One weight per parent, summing to one."""
        if self.weights is None:
            return (1.0 / parents,) * parents
        if len(self.weights) != parents:
            raise RecipeError(f"{len(self.weights)} weights for {parents} parents: give one per parent")
        return self.weights
