"""Fuse parents into a child, stage after stage."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from depfuse.align import Coupling
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.evaluate.fitting import check_test_labels
from depfuse.fusion.aligned import Aligned
from depfuse.fusion.arguments import CalibrationLike, RecipeLike, read_arguments
from depfuse.fusion.candidates import Candidate, Family, best_of
from depfuse.fusion.child_builder import ChildBuilder, FinishedChild
from depfuse.fusion.choose_shares import ChosenShares, shares_by_part
from depfuse.fusion.costs import foretell_refit, quicker_than
from depfuse.fusion.parents import Parents
from depfuse.fusion.partial_merging import merge_partially
from depfuse.fusion.prepared import Inputs, Prepared, announce
from depfuse.fusion.resolve import resolve, resolve_mirroring
from depfuse.fusion.result import FusionResult
from depfuse.fusion.soundness import Soundness, warn_of_scales
from depfuse.fusion.step_acceptance import Step, StepAcceptance
from depfuse.merge import AlignedParents, Shares, fisher_information
from depfuse.networks.forward import Call
from depfuse.networks.isolation import isolated
from depfuse.networks.precision import with_types_of
from depfuse.progress import ProgressLike, shown
from depfuse.tasks.batch_inputs import kind_of
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.selection import ScoresFunction, deselect
from depfuse.teach.distil import Distillation
from depfuse.teach.training_images import apart_from_judges


@isolated()
def fuse(
    parents: Sequence[nn.Module] | Parents,
    recipe: RecipeLike | CalibrationLike | None = None,
    calibration: CalibrationLike | None = None,
    *,
    call: Call | None = None,
    scores: ScoresFunction | None = None,
    task: str | None = None,
    training: Distillation | None = None,
    progress: ProgressLike = None,
) -> FusionResult:
    """Fuse parents of one architecture into a child.

    Groups are found and proved on parent 0, every other parent is aligned to it, the aligned weights are averaged and
    the child's BatchNorm statistics recomputed; then it is trained on, where the recipe says so. The parents are only
    read, and copied at the start: several threads may fuse the same ones, one fusion after another. A caller's
    autocast, `no_grad`, inference mode or default type does not change the child.

    Parents of another width than the child's are first mapped to it, each matched to a parent of the child's width
    (`Widths`).

    Parameters
    ----------
    parents
        Two or more networks with equal tensor names; `Parents` where more is known of them: their labels, the child's
        shapes, an example input, their channel groups.
    recipe
        Settings: a `Recipe`, the name of a preset, a file, or a mapping; the defaults where None.
    calibration
        Unlabelled training data (labels are not read): a `Loader`, tensors, a data set, or whatever yields batches, of
        which `recipe.calibration.images` samples are taken (see `as_loader`). May stand in the recipe's place. None
        where the recipe needs none.
    call
        How a network is run on a batch, `call(model, batch)`, where it is not by the inputs that the batch begins with.
    scores
        Which tensor of a network's output counts, `scores(output)`, where that is a structure. By default an entry
        `logits` or `out` and auxiliary outputs beside it, or all floating-point tensors with an entry for each image.
    task
        What the outputs mean, in the place of the recipe's `task`: classes, dense, multilabel, binary, regression,
        features, weighted or none.
    training
        The images to distil, self-train or fine-tune on. Those that judge the training are not calibrated on.
    progress
        Whether the progress is shown, with an estimate of the end where steps are counted: as a bar in a terminal,
        below the cell of a notebook, and as a line on standard error every 30 seconds elsewhere. By default it is
        shown where someone looks on, in a notebook or at the prompt of a terminal, and a script stays silent. A
        function is called with the name of each step as it begins, and nothing is shown.

    Raises
    ------
    RecipeError
        The parents do not match, differ in more than their weights (see `check_alike`), or the recipe does not suit
        them.
    GroupError
        A part of the network could not be followed or proved that `align.allow_fixed` does not allow.
    GroupError, ArchitectureError, DataError
        See `find_groups`, `prove_groups` and `align`.
    """
    inputs, own = read_arguments(parents, recipe, calibration, call, scores, task)
    with shown(progress):
        training, inputs = _read(training, inputs, call)
        prepared = Prepared.of(inputs)
        training, prepared = _mirroring(training, prepared)
        _check(training, prepared)
        aligned = Aligned.of(prepared)
        step, recipe, calibration = prepared.step, aligned.recipe, prepared.inputs.calibration
        with step("merge"):
            builder, unmatched = _builder(aligned)
            chosen_shares = ChosenShares(Shares(tuple(prepared.ensemble.shares)))
            child = builder.average(chosen_shares.shares)
        if recipe.merge.weights_by != "network" and calibration is not None and builder.example is not None:
            with step("shares"):
                chosen_shares = shares_by_part(builder, recipe.merge.weights_by, calibration)
                child = builder.average(chosen_shares.shares)
        soundness = Soundness(prepared.ensemble.networks, calibration, builder.example)
        soundness.after("the merge", child)
        family: Sequence[Candidate] = ()
        if recipe.goal.name == "best":
            with step("best", quicker_than(recipe)):
                family = Family(builder, _alone(aligned)).find()
            finished = FinishedChild(child=best_of(family).network)
            soundness.after("goal best", finished.child)
        else:
            with step("refit" if recipe.refits else "renorm", quicker_than(recipe) if recipe.refits else ""):
                if recipe.refits and calibration is not None:
                    foretell_refit(prepared.ensemble.networks, calibration, recipe)
                finished = builder.finish(child, chosen_shares.shares)
            done = f"refit {recipe.refit.name}" if recipe.refits else f"renorm {recipe.renorm.name}"
            soundness.after(done, finished.child)
            for effect in finished.steps:
                if effect.stage == "refit" and not (effect.kept or effect.negligible):
                    warnings.warn(f"{effect}: the child stays as it was", DepfuseWarning, stacklevel=3)
        ensemble, further = prepared.ensemble, list[Step]()
        if training is not None and recipe.trains:
            ensemble, further = _train(finished, aligned, training)
            soundness.after("the training", finished.child)
        soundness.check()
        soundness.check_spread(finished.child)
        return FusionResult(
            child=with_types_of(deselect(finished.child), own.models[0]),
            parents=own.models,
            recipe=resolve(recipe, finished, prepared.teachers, widths=aligned.widths, template=builder.template),
            seconds=step.seconds,
            builder=builder,
            ensemble=ensemble,
            chosen_shares=chosen_shares,
            parent_labels=prepared.labels,
            given_template=own.template,
            unmatched=unmatched,
            not_converged=aligned.not_converged,
            widths=aligned.widths,
            family=family,
            steps=[*finished.steps, *further],
            folded=aligned.folded,
            refit_reason=prepared.refit_reason,
            mirroring=prepared.mirroring.because,
            teaching=prepared.teachers.note,
            meaning=prepared.meaning,
            in_one_space=prepared.copies if prepared.meaning.scored.name == "features" else (),
        )


@isolated()
def match(
    parents: Sequence[nn.Module] | Parents,
    recipe: RecipeLike | CalibrationLike | None = None,
    calibration: CalibrationLike | None = None,
    *,
    call: Call | None = None,
    scores: ScoresFunction | None = None,
    task: str | None = None,
    progress: ProgressLike = None,
) -> Aligned:
    """Match the channels of parents by the first stages of `fuse`, with its arguments."""
    inputs, _ = read_arguments(parents, recipe, calibration, call, scores, task)
    with shown(progress):
        return Aligned.of(Prepared.of(inputs))


def _read(training: Distillation | None, inputs: Inputs, call: Call | None) -> tuple[Distillation | None, Inputs]:
    """Collect the training data, None where nothing is trained, and calibrate on none of those that judge it.

    Raises `RecipeError` where there are none.
    """
    if training is not None and not isinstance(training, Distillation):
        raise RecipeError(f"training is {kind_of(training)}: give training=Distillation(data)")
    if not inputs.recipe.trains:
        return None, inputs
    if training is None:
        raise RecipeError(
            "distil, self_training and finetune need the training images: give training=Distillation(data)"
        )
    read = training.read(inputs.parents.models[0], call)
    if inputs.recipe.train.teaches and inputs.calibration is not None:
        apart = apart_from_judges(inputs.calibration, read.data, inputs.recipe.seed)
        inputs = replace(inputs, calibration=apart)
    return read, inputs


def _mirroring(training: Distillation | None, prepared: Prepared) -> tuple[Distillation | None, Prepared]:
    """Let training images be mirrored as calibration images are; where there are none of these, ask once more."""
    if training is None:
        return None, prepared
    if prepared.inputs.calibration is None:
        images = training.images(next(prepared.ensemble.networks[0].parameters()).device, prepared.recipe.seed)
        recipe, mirroring = resolve_mirroring(prepared.recipe, prepared.copies, prepared.ensemble, images)
        prepared = replace(prepared, recipe=recipe, mirroring=mirroring)
    return training.mirroring(prepared.mirroring.allowed), prepared


def _check(training: Distillation | None, prepared: Prepared) -> None:
    """Raise `DataError` where labels that are to be learned, or to be scored by, do not fit the child's outputs."""
    like, task = prepared.template or prepared.ensemble.networks[0], prepared.meaning.task
    if training is not None:
        training.check(like, task, prepared.recipe.train)
    warn_of_scales(prepared.inputs.parents.models, prepared.inputs.calibration)
    if prepared.inputs.parents.test is not None:
        check_test_labels(like, prepared.inputs.parents.test, task or CLASSES)


def _builder(aligned: Aligned) -> tuple[ChildBuilder, Sequence[nn.Module]]:
    """Collect what is averaged, widened by unmerged channels, and the parents with nothing matched."""
    prepared, recipe = aligned.prepared, aligned.recipe
    calibration, ensemble = prepared.inputs.calibration, prepared.ensemble
    models, groups, couplings, unmatched = aligned.models, aligned.groups, aligned.couplings, aligned.unmatched
    template, partial = prepared.template, None
    if recipe.merge.partly:
        parents = AlignedParents(models, groups, couplings, ensemble.shares, prepared.input)
        extent = recipe.align.proof
        partial = merge_partially(
            parents, recipe.merge, calibration, template, ensemble.labels, seed=recipe.seed, extent=extent
        )
        models, unmatched, template, groups = partial.models, partial.unmatched, partial.template, partial.groups
        couplings = [{g.name: Coupling.identity(g.size) for g in groups.free} for _ in models]
    information = None
    if recipe.merge.average == "fisher" and calibration is not None:
        information = [fisher_information(model, calibration, seed=recipe.seed, task=ensemble.task) for model in models]
    builder = ChildBuilder(
        networks=models,
        groups=groups,
        couplings=couplings,
        recipe=recipe,
        ensemble=ensemble,
        calibration=calibration,
        acceptance=None if calibration is None else StepAcceptance(ensemble, calibration),
        example=prepared.example,
        template=template,
        partial_merge=partial,
        information=information,
    )
    return builder, unmatched


def _train(finished: FinishedChild, aligned: Aligned, training: Distillation) -> tuple[Ensemble, list[Step]]:
    """Train a child in place; return the ensemble that it learned from, and what self-training did."""
    prepared, recipe, ensemble = aligned.prepared, aligned.recipe, aligned.prepared.ensemble
    announce("train")
    if recipe.train.teaches and ensemble.joint and not ensemble.heads:
        images = prepared.inputs.calibration
        if not recipe.teach.labelled:
            # A head fitted to more images than those for calibration is better.
            images = training.images(next(finished.child.parameters()).device, recipe.seed)
        assert images is not None, "a joint head is fitted to images"
        mirrored = recipe.train.self_training > 0 and images.suited_augmentation.flip
        if mirrored or not recipe.teach.labelled:
            ensemble = prepared.ensemble_of(images, mirrored=mirrored)
    # At another width the parents' outputs are others; where they know other labels, mixtures of their streams hold
    # less than the child can learn.
    alike = aligned.widths is None and ensemble.labels is None and not ensemble.joint
    session = finished.session if alike else None
    origin = recipe.model_dump_json()
    trained = training.train(
        finished.child,
        ensemble,
        recipe.train,
        seed=recipe.seed,
        name="child",
        origin=origin,
        session=session,
        labelled=recipe.teach.labelled,
    )
    prepared.step.seconds.update(trained.seconds)
    effect = trained.self_training
    return ensemble, [] if effect is None else [Step.of_self_training(effect)]


def _alone(aligned: Aligned) -> Sequence[nn.Module]:
    """Return the parents as candidates, at the child's width; none where they do not know all labels."""
    if aligned.widths is None:
        return aligned.prepared.alone
    return () if aligned.prepared.ensemble.joint else aligned.models
