"""Fuse parents into a child, stage after stage."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from depfuse.align import Coupling
from depfuse.align.statistics.shared import SharedMoments
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.fusion.aligned import Aligned
from depfuse.fusion.arguments import CalibrationLike, RecipeLike, as_called, read_arguments
from depfuse.fusion.candidates import Candidate, Family, best_of
from depfuse.fusion.checks import check_weights
from depfuse.fusion.choose_shares import ChosenShares, shares_by_part
from depfuse.fusion.material import FinishedChild, Material
from depfuse.fusion.partial_merging import merge_partially
from depfuse.fusion.prepared import Inputs, OnStep, Prepared
from depfuse.fusion.resolve import resolve
from depfuse.fusion.result import FusionResult
from depfuse.fusion.soundness import Soundness
from depfuse.fusion.step_acceptance import Keeper
from depfuse.groups import ChannelGroups
from depfuse.merge import AlignedParents, Shares, fisher_information
from depfuse.networks.forward import Call, Example
from depfuse.networks.isolation import isolated
from depfuse.networks.precision import in_full_precision, with_types_of
from depfuse.progress import shown
from depfuse.teach.distil import Distillation


@isolated()
def fuse(
    models: Sequence[nn.Module],
    recipe: RecipeLike | CalibrationLike | None = None,
    calibration: CalibrationLike | None = None,
    *,
    call: Call | None = None,
    example: Example | None = None,
    groups: ChannelGroups | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    template: nn.Module | None = None,
    allow_fixed: bool | None = None,
    training: Distillation | None = None,
    shared: SharedMoments | None = None,
    progress: bool | None = None,
    on_step: OnStep | None = None,
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
    models
        Two or more parents with equal tensor names, on one device; their widths may differ. Of half precision, or of
        several types, they are computed with in float32, and the child has the types of the first.
    recipe
        Settings: a `Recipe`, the name of a preset, a file, or a mapping; the defaults where None.
    calibration
        Unlabelled training data (labels are not read): a `Loader`, tensors, a data set, or whatever yields batches, of
        which `recipe.calibration.images` samples are taken (see `as_loader`). May stand in the recipe's place. None
        where the recipe needs none.
    call
        How a network is run on a batch, `call(model, batch)`, where it is not by the inputs that the batch begins with.
    example
        An input (1, ...) to trace with; one calibration sample where None.
    groups
        Channel groups of this architecture, which are then not traced again, nor proved again where they are proved;
        not used where widths differ.
    labels
        For every parent, the labels of its outputs in order, where they differ. The child has one output for each of
        all labels, ascending.
    template
        A network of the same architecture and the child's shapes: with an output for each label, or of a width that no
        parent has; left as it was.
    allow_fixed
        Where a part of the network could not be followed or proved (see `not_followed`), leave its channels in place,
        warn, and fuse the rest. By default raise where that is more than half of the parameters that reach the output;
        where False, always.
    training
        The training images, where the recipe says to distil or to fine-tune.
    shared
        Activation moments of these parents and groups, to be reused in several fusions.
    progress
        Whether the progress is shown, with an estimate of the end where steps are counted: as a bar in a terminal,
        below the cell of a notebook, and as a line on standard error every 30 seconds elsewhere. By default it is
        shown where someone looks on, in a notebook or at the prompt of a terminal, and a script stays silent.
    on_step
        Called with the name of each step as it begins.

    Raises
    ------
    RecipeError
        The parents do not match, differ in more than their weights (see `check_alike`), or the recipe does not suit
        them.
    GroupError
        A part of the network could not be followed or proved that `allow_fixed` does not allow.
    GroupError, ArchitectureError, DataError
        See `find_groups`, `prove_groups` and `align`.
    """
    check_weights(models)
    given, models = models, in_full_precision(models)
    recipe, calibration = read_arguments(models, recipe, calibration, call)
    example = as_called(example, call)
    if training is None and recipe.trains:
        raise RecipeError("distil and finetune need the training images: give training=Distillation(data)")
    with shown(progress):
        inputs = Inputs(models, recipe, calibration, example, groups, labels, template, allow_fixed, shared, on_step)
        prepared = Prepared.of(inputs)
        aligned = Aligned.of(prepared)
        step, recipe = prepared.step, aligned.recipe
        with step("merge"):
            material, unmatched = _material(aligned)
            chosen_shares = ChosenShares(Shares(tuple(prepared.ensemble.shares)))
            child = material.average(chosen_shares.shares)
        if recipe.merge.weights_by != "network" and calibration is not None and material.example is not None:
            with step("shares"):
                chosen_shares = shares_by_part(material, recipe.merge.weights_by, calibration)
                child = material.average(chosen_shares.shares)
        soundness = Soundness(prepared.ensemble.networks, calibration, material.example)
        soundness.after("the merge", child)
        family: Sequence[Candidate] = ()
        if recipe.goal.name == "best":
            with step("best"):
                family = Family(material, _alone(aligned)).find()
            finished = FinishedChild(child=best_of(family).network)
            soundness.after("goal best", finished.child)
        else:
            with step("refit" if recipe.refits else "renorm"):
                finished = material.finish(child, chosen_shares.shares)
            soundness.after(
                f"refit {recipe.refit.name}" if recipe.refits else f"renorm {recipe.renorm.name}", finished.child
            )
            for effect in finished.steps:
                if effect.stage == "refit" and not (effect.kept or effect.negligible):
                    warnings.warn(f"{effect}: the child stays as it was", DepfuseWarning, stacklevel=3)
        ensemble = prepared.ensemble
        if training is not None and recipe.trains:
            ensemble = _train(finished, aligned, training)
            soundness.after("the training", finished.child)
        soundness.check()
        soundness.check_spread(finished.child)
        return FusionResult(
            child=with_types_of(finished.child, given[0]),
            parents=given,
            recipe=resolve(recipe, finished, prepared.teachers, widths=aligned.widths, template=material.template),
            seconds=step.seconds,
            material=material,
            ensemble=ensemble,
            chosen_shares=chosen_shares,
            parent_labels=prepared.labels,
            given_template=template,
            unmatched=unmatched,
            not_converged=aligned.not_converged,
            widths=aligned.widths,
            family=family,
            steps=finished.steps,
            folded=aligned.folded,
            refit_reason=prepared.refit_reason,
        )


@isolated()
def match(
    models: Sequence[nn.Module],
    recipe: RecipeLike | CalibrationLike | None = None,
    calibration: CalibrationLike | None = None,
    *,
    call: Call | None = None,
    example: Example | None = None,
    groups: ChannelGroups | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    template: nn.Module | None = None,
    allow_fixed: bool | None = None,
    shared: SharedMoments | None = None,
    progress: bool | None = None,
    on_step: OnStep | None = None,
) -> Aligned:
    """Match the channels of parents by the first stages of `fuse`, with its arguments."""
    check_weights(models)
    models = in_full_precision(models)
    recipe, calibration = read_arguments(models, recipe, calibration, call)
    example = as_called(example, call)
    inputs = Inputs(models, recipe, calibration, example, groups, labels, template, allow_fixed, shared, on_step)
    with shown(progress):
        return Aligned.of(Prepared.of(inputs))


def _material(aligned: Aligned) -> tuple[Material, Sequence[nn.Module]]:
    """Collect what is averaged, widened by unmerged channels, and the parents with nothing matched."""
    prepared, recipe = aligned.prepared, aligned.recipe
    calibration, ensemble = prepared.inputs.calibration, prepared.ensemble
    models, groups, couplings, unmatched = aligned.models, aligned.groups, aligned.couplings, aligned.unmatched
    template, partial = prepared.template, None
    if recipe.merge.partly:
        parents = AlignedParents(models, groups, couplings, ensemble.shares, prepared.input)
        partial = merge_partially(parents, recipe.merge, calibration, template, ensemble.labels, seed=recipe.seed)
        models, unmatched, template, groups = partial.models, partial.unmatched, partial.template, partial.groups
        couplings = [{g.name: Coupling.identity(g.size) for g in groups.free} for _ in models]
    information = None
    if recipe.merge.average == "fisher" and calibration is not None:
        information = [fisher_information(model, calibration, seed=recipe.seed) for model in models]
    material = Material(
        networks=models,
        groups=groups,
        couplings=couplings,
        recipe=recipe,
        ensemble=ensemble,
        calibration=calibration,
        keeper=None if calibration is None else Keeper(ensemble, calibration),
        example=prepared.example,
        template=template,
        partial_merge=partial,
        information=information,
    )
    return material, unmatched


def _train(finished: FinishedChild, aligned: Aligned, training: Distillation) -> Ensemble:
    """Train a child in place; return the ensemble that it learned from."""
    prepared, recipe, ensemble = aligned.prepared, aligned.recipe, aligned.prepared.ensemble
    prepared.step.announce("train")
    if recipe.train.distil and ensemble.joint and not recipe.teach.labelled:
        # A head fitted to more images than those for calibration is better.
        ensemble = prepared.ensemble_of(training.images(next(finished.child.parameters()).device, recipe.seed))
    # At another width the parents' outputs are others; where they know other labels, mixtures of their streams hold
    # less than the child can learn.
    alike = aligned.widths is None and ensemble.labels is None and not ensemble.joint
    session = finished.session if alike else None
    origin = recipe.model_dump_json()
    prepared.step.seconds.update(
        training.train(
            finished.child, ensemble, recipe.train, seed=recipe.seed, name="child", origin=origin, session=session
        )
    )
    return ensemble


def _alone(aligned: Aligned) -> Sequence[nn.Module]:
    """Return the parents as candidates, at the child's width; none where they do not know all labels."""
    if aligned.widths is None:
        return aligned.prepared.alone
    return () if aligned.prepared.ensemble.joint else aligned.models
