"""Check the inputs of a fusion, and prepare its parents as teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from depfuse.align.statistics.shared import SharedMoments
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.fusion.calibration import for_statistics
from depfuse.fusion.checks import (
    check_images,
    check_label_counts,
    check_outputs,
    check_parents,
    check_real,
    check_renorm,
    check_unequal,
    example_of,
    label_sets,
    say_what_is_not_augmented,
    warn_of_statistics,
)
from depfuse.fusion.meaning import Known, Meaning
from depfuse.fusion.mirror_images import Mirroring
from depfuse.fusion.parents import Parents
from depfuse.fusion.resolve import check_widths, resolve_mirroring, resolve_refit, resolve_targets
from depfuse.fusion.same_modules import check_alike
from depfuse.fusion.widths import shapes_of, widest
from depfuse.models.inputs import check_input
from depfuse.networks.copying import evaluation_copy, fit_example
from depfuse.networks.faithful import private_copy
from depfuse.networks.forward import Example
from depfuse.networks.stopwatch import Stopwatch, device_of
from depfuse.progress import work
from depfuse.recipe import Recipe
from depfuse.tasks.selection import ScoresFunction
from depfuse.teach.one_space import bring_into_one_space
from depfuse.teach.teachers import Teachers, prepare_teachers

OUTPUT_PER_LABEL = ("classes", "dense", "multilabel")  # detectors have blocks of them, and numbers beside
STEPS = {
    "groups": "finding and proving channel groups",
    "align": "matching channels",
    "choose": "choosing between matchings",
    "merge": "merging",
    "shares": "choosing the parents' shares",
    "refit": "refitting layer by layer",
    "renorm": "renewing BatchNorm statistics",
    "heads": "refitting the parents' heads",
    "baseline": "training a parent as long",
    "best": "making candidates, and choosing the best",
    "train": "training on",
}
"""Name of a step -> what it does."""


def announce(step: str, quicker: str = "") -> None:
    """Say which of the `STEPS` begins, and what would be quicker."""
    work().enter(step, STEPS[step])
    work().advise(quicker)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of `fuse`, in one form each.

    Attributes
    ----------
    parents
        Computed with in float32, or in the double precision of all.
    recipe, calibration
        What the fusion does, and the images that it reads.
    scores
        The user's choice of the tensor that counts of an output.
    """

    parents: Parents
    recipe: Recipe
    calibration: Loader | None
    scores: ScoresFunction | None = None


@dataclass(frozen=True, eq=False)
class Clock:
    """Announce each step as it begins, and measure its wall-clock seconds."""

    watch: Stopwatch
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str, quicker: str = "") -> Iterator[None]:
        """Announce a step and measure it, on the device as well."""
        announce(name, quicker)
        started = self.watch.now()
        yield
        self.seconds[name] = self.watch.now() - started


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Checked inputs of a fusion, and its parents as teachers.

    Attributes
    ----------
    inputs
        The arguments.
    recipe
        With its refit resolved.
    refit_reason
        How `refit auto` was resolved and why; empty where the recipe named the refit.
    copies
        Copies of the parents, in evaluation mode; a fusion changes no network that it was given.
    teachers
        The copies, with renewed statistics or one head where the recipe asks for that.
    ensemble
        The teachers with the recipe's shares.
    mirroring
        Whether images are mirrored, and why.
    meaning
        What their outputs mean; they return the tensor that counts.
    template
        A network of the child's shapes, where no parent has them.
    alone
        The parents as candidates, where they know the same labels.
    example
        An input, where one is known.
    moments
        Activation moments of the copies, for several fusions of the same parents.
    unequal
        Whether the parents, or the template, have several widths.
    step
        Measures the steps.
    labels, own_template
        The parents' label sets, where they differ, and a copy of the template that was given.
    """

    inputs: Inputs
    recipe: Recipe
    refit_reason: str
    copies: Sequence[nn.Module]
    teachers: Teachers
    ensemble: Ensemble
    mirroring: Mirroring
    meaning: Meaning
    template: nn.Module | None
    alone: Sequence[nn.Module]
    example: Example | None
    moments: SharedMoments | None
    unequal: bool
    step: Clock
    labels: LabelSets | None
    own_template: nn.Module | None

    @classmethod
    def of(cls, inputs: Inputs) -> Prepared:
        """Check what can be checked before groups are found, and prepare the teachers.

        Raises
        ------
        RecipeError
            The parents do not match, or the recipe does not suit them.
        """
        work().step("preparing the parents")
        say_what_is_not_augmented(inputs.recipe, inputs.calibration)
        given, calibration = inputs.parents, inputs.calibration
        if calibration is not None:
            calibration = calibration.mirroring(inputs.recipe.calibration.mirror)
        parents, template = given.models, given.template
        sets = label_sets(given.labels, parents, template)
        check_parents(parents if template is None or sets is not None else [*parents, template], sets)
        no_input = given.example is None and calibration is None
        example = None if no_input else example_of(given.example, calibration)
        if example is not None:
            check_input(parents[0], fit_example(example, parents[0]))
        check_alike(parents, example, template)
        warn_of_statistics(parents[0], inputs.recipe)
        copies = [private_copy(model, example) for model in parents]
        if sets is None:
            check_outputs(copies, example)
        check_real(copies[0], example)
        template = None if template is None else evaluation_copy(template)
        moments = None if given.moments is None else given.moments.for_copies(parents, copies)
        background = given.background if sets is not None else given.column_of_background
        known = Known(sets, template, background, given.test)
        meaning = Meaning.of(copies, inputs.recipe, calibration, example, inputs.scores, known)
        if sets is not None and meaning.task is not None and meaning.task.name in OUTPUT_PER_LABEL:
            check_label_counts(copies, template, sets, example)
        if meaning.task is not None and meaning.task.name == "features" and isinstance(calibration, Loader):
            meaning = meaning.with_note(*map(str, bring_into_one_space(copies, calibration)))
        like = template or widest(copies, inputs.recipe.merge.width_of)
        unknown = meaning.because if meaning.task is None else ""
        recipe, refit_reason = resolve_refit(inputs.recipe, copies, like, calibration, sets, meaning.task, unknown)
        recipe = resolve_targets(recipe)
        if meaning.task is not None:
            recipe = recipe.changed(task=meaning.task.name)
        meaning.check_labelled(recipe)
        meaning.check_refit(recipe)
        shares = recipe.shares(len(copies))
        check_images(recipe, calibration)
        check_renorm(recipe, copies[0])
        teachers = _teachers(Ensemble(copies, shares, sets, task=meaning.task), recipe, calibration, template)
        models, remaining = teachers.models, teachers.labels
        ensemble = Ensemble(models, shares, remaining, teachers.joint, meaning.task, teachers.heads)
        recipe, mirroring = resolve_mirroring(recipe, copies, ensemble, calibration)
        if calibration is not None:
            calibration = calibration.mirroring(mirroring.allowed)
        child_template = None if teachers.joint else template
        shaped = (*models, child_template or models[0])
        unequal = remaining is None and any(shapes_of(model) != shapes_of(models[0]) for model in shaped)
        if unequal:
            check_unequal(recipe, child_template)
        check_widths(recipe, one_width=not unequal)
        return cls(
            inputs=replace(inputs, calibration=calibration),
            recipe=recipe,
            refit_reason=refit_reason,
            copies=copies,
            teachers=teachers,
            ensemble=ensemble,
            mirroring=mirroring,
            meaning=meaning,
            template=child_template,
            alone=copies if sets is None else (),
            example=example,
            moments=moments,
            unequal=unequal,
            step=Clock(Stopwatch(device_of(models[0]))),
            labels=sets,
            own_template=template,
        )

    def ensemble_of(self, images: Loader, *, mirrored: bool = False) -> Ensemble:
        """Prepare the parents once more with one head, fitted to other images, or also to their mirror images."""
        as_before = {
            "teach.renorm": "reset" if self.teachers.renewed else "none",
            "teach.head": "recall" if self.teachers.recalled else "always",
        }
        recipe, shares = self.recipe.changed(as_before), self.ensemble.shares
        parents = Ensemble(self.copies, shares, self.labels, task=self.meaning.task)
        teachers = _teachers(parents, recipe, images, self.own_template, mirrored=mirrored)
        return replace(self.ensemble, networks=teachers.models)

    @property
    def input(self) -> Example:
        """An input to trace a network with; raises `RecipeError` where none is known."""
        return example_of(self.example, self.inputs.calibration)


def _teachers(
    parents: Ensemble,
    recipe: Recipe,
    images: Loader | None,
    template: nn.Module | None,
    *,
    mirrored: bool = False,
) -> Teachers:
    statistics = None if images is None else for_statistics(images, recipe.calibration, recipe.seed)
    learns = recipe.learns
    return prepare_teachers(parents, recipe.teach, images, statistics, template, learns=learns, mirrored=mirrored)
