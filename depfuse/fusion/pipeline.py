"""The whole corridor as one function: parents in, child out."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from depfuse.align import Coupling, Couplings, align
from depfuse.align.solvers import load_solver
from depfuse.align.statistics.shared import SharedMoments
from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DepfuseWarning, GroupError, RecipeError
from depfuse.fusion.agreement import Disagreement
from depfuse.fusion.arrangement import Owners
from depfuse.fusion.candidates import Candidate, Family, best_of
from depfuse.fusion.choose_shares import Chosen, shares_of_parts
from depfuse.fusion.keeping import Keeper, Step
from depfuse.fusion.resolve import check_widths, resolve_distance, resolve_refit, settled
from depfuse.fusion.same_modules import check_alike
from depfuse.fusion.side_by_side import Apart, keep_apart
from depfuse.fusion.soundness import Soundness, check_variances
from depfuse.fusion.widths import Brought, Widths, shapes_of, widest
from depfuse.groups import ChannelGroups, find_groups, prove_groups
from depfuse.groups.coverage import check_followed
from depfuse.merge import Shares, average, fisher_information
from depfuse.networks.copying import evaluation_copy, private_copy
from depfuse.networks.isolation import isolated
from depfuse.recipe import Recipe
from depfuse.refit import Together, refit_layers
from depfuse.renorm import Merged, chosen_method, has_batch_norm, renormalise
from depfuse.renorm.folding import fold
from depfuse.teach.distil import Ensemble, Further
from depfuse.teach.joint_head import shared_anew
from depfuse.teach.teachers import Teachers, for_statistics, prepared

OnStep = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class FusionResult:
    """A child and how it came about.

    Attributes
    ----------
    child
        The fused network, in eval mode, in the channel order of parent 0, or of the one that the recipe names; of
        parent `like` where widths differ.
    groups
        The proved channel groups, of the child's width.
    couplings
        Group name -> coupling, one mapping per parent: from its channels at the child's width.
    recipe
        The settings used, with what all became that was left open: a fusion by it decides nothing anew.
    seconds
        Wall-clock seconds of `groups` (finding and proving), `align`, `choose` (between several alignments), `merge`,
        `shares` (choosing them for each part) and `refit` where they were asked for, `renorm`, and `distil` and
        `finetune` where they were.
    averaged
        What was averaged: the parents at the child's width, with renewed statistics, one head, folded scales or room
        for channels of others where they were changed so.
    labels
        Which labels the parents' outputs stand for, where they differ.
    template
        A network that the child is like, where it is like none of the parents.
    not_converged
        One sentence for each solver that stopped at its limit; the best of its results is used.
    widths
        Where parents had other widths: how each was brought to the child's, with the rectangular couplings.
    unmatched
        The parents at the child's width in the order in which their channels stand.
    apart
        Where channels are kept side by side: which, and the parents with room for them. Groups, couplings and what was
        averaged are those of the wider child then.
    teachers
        The parents whose ensemble the child learns from: those given, or with renewed statistics, and with one head.
    joint
        Whether the teachers have one head over all labels.
    chosen
        The parents' shares in the child, and how they were chosen where the recipe says so.
    information
        Per parent the Fisher information of its parameters, where they are averaged by it.
    example
        An input that the parents take, where one is known.
    family
        All candidates, where the recipe's goal is the best of them.
    steps
        How far the child was from its parents' ensemble before and after each step that followed the merge, and which
        were kept.
    folded
        Whether BatchNorm's scales were folded into the layers before, so that channels could be mixed. Groups are those
        of the folded networks then.
    refit_reason
        What `refit auto` became and why, in one sentence; empty where the recipe named the refit.
    parents
        The parents as they were given.
    """

    child: nn.Module
    groups: ChannelGroups
    couplings: Sequence[Couplings]
    recipe: Recipe
    seconds: dict[str, float]
    averaged: Sequence[nn.Module]
    calibration: Loader | None
    labels: LabelSets | None = None
    template: nn.Module | None = None
    not_converged: Sequence[str] = ()
    widths: Brought | None = None
    unmatched: Sequence[nn.Module] = ()
    apart: Apart | None = None
    teachers: Sequence[nn.Module] = ()
    joint: bool = False
    chosen: Chosen | None = None
    information: Sequence[Mapping[str, Tensor]] | None = None
    example: Tensor | None = None
    family: Sequence[Candidate] = ()
    folded: bool = False
    steps: Sequence[Step] = ()
    refit_reason: str = ""
    parents: Sequence[nn.Module] = ()

    @property
    def owners(self) -> Owners | None:
        """Whose alone the child's channels are, where some are kept apart."""
        return None if self.apart is None else self.apart.owners

    @property
    def like(self) -> int:
        """Number of the parent whose channels the child's are matched to: it has the child's width if any has."""
        return self.recipe.kept if self.widths is None else self.widths.reference

    @property
    def best(self) -> Candidate | None:
        """The candidate that the child is, where the recipe's goal is the best of a family."""
        return best_of(self.family) if self.family else None

    @property
    def shares(self) -> Shares:
        """The parents' shares in the child."""
        return Shares(self.recipe.shares(len(self.averaged))) if self.chosen is None else self.chosen.shares

    @isolated()
    def at(self, shares: Shares | Sequence[float]) -> nn.Module:
        """Another child of the same couplings, not trained on.

        With other shares, one per parent and summing to one, for the whole network, or with `Shares` that differ in its
        parts; `at(result.shares)` is the child again.

        Raises
        ------
        RecipeError
            The shares are negative or do not sum to one, or the child depends on more than couplings and shares.
        """
        shares = Shares.create(shares)
        self._check_at()
        if shares != self.shares and load_solver(self.recipe.solver).together is not None:
            raise RecipeError(f"solver {self.recipe.solver} matches by the shares: fuse again to have others")
        self.recipe.changed(weights=shares.network).shares(len(self.averaged))
        result = self
        if self.joint and self.example is not None and shares.network != self.shares.network:
            again = partial(shared_anew, before=self.shares.network, now=shares.network, images=self.example)
            result = replace(self, averaged=again(self.averaged), teachers=again(self.teachers))
        return result._finished(result._average(shares), shares)[0]

    def _finished(self, child: nn.Module, shares: Shares) -> tuple[nn.Module, Together | None, list[Step]]:
        """Refit and renormalise an average of the parents, as the recipe says and where it helps (see `Keeper`).

        The child may be changed. The second is what a refitted one is trained on by.
        """
        keeper = self._keeper(shares)
        steps: list[Step] = []
        if keeper is None or not self.recipe.refits:
            self._renew(child, shares, self.recipe.renorm_after, keeper, steps)
            return child, None, steps
        refitted = copy.deepcopy(child)
        together = self._refit(refitted, shares, keeper)
        self.renormalise(refitted, self.couplings, shares)
        self._renew(child, shares, self.recipe.renorm, keeper, steps)
        steps.append(keeper.compare(f"refit {self.recipe.refit}", child, refitted))
        return (refitted, together, steps) if steps[-1].kept else (child, None, steps)

    @property
    def refit_left_out(self) -> bool:
        """Whether a refit was tried, and its child was no nearer to the ensemble."""
        return any(step.name.startswith("refit ") and not step.kept for step in self.steps)

    @property
    def renormed(self) -> str:
        """How the child was renormalised, where `auto` left that open."""
        found = [step.kept for step in self.steps if step.name == "renorm reset"]
        if self.recipe.refits and not self.refit_left_out:
            return "none" if self.recipe.renorm_after == "none" else chosen_method(self.recipe.renorm_after, self.child)
        if found:
            return "reset" if found[0] else "none"
        return chosen_method(self.recipe.renorm, self.child)

    def _keeper(self, shares: Shares) -> Keeper | None:
        if self.calibration is None:
            return None
        return Keeper(self.teachers, shares.network, self.labels, self.calibration, joint=self.joint)

    def _renew(self, child: nn.Module, shares: Shares, method: str, keeper: Keeper | None, steps: list[Step]) -> None:
        """Renormalise an average of the parents in place; by `auto`, only where that helps."""
        if keeper is None or method != "auto" or chosen_method("auto", child) != "reset":
            self._renormalise(child, self.couplings, shares, method, self._settled)
            return
        assert self.calibration is not None
        images, some = (for_statistics(loader, self.recipe) for loader in (self.calibration, keeper.seen))
        steps.append(keeper.renew_where_nearer(child, images, some, self._settled))

    @property
    def _settled(self) -> Sequence[str]:
        """Layers of which all that is before them is kept apart: they have their parents' statistics still."""
        return () if self.apart is None else self.apart.settled

    def _check_at(self) -> None:
        """Raise `RecipeError` where no shares make the child again."""
        trained = {name: value for name, value in self.recipe.settings.items() if name in ("distil", "finetune")}
        for name, epochs in trained.items():
            if epochs:
                raise RecipeError(f"the child was trained on ({name} {epochs}): fuse again to have one of other shares")
        if self.recipe.goal == "best":
            raise RecipeError(
                "with goal best the child is the best of several candidates, which have shares of their own: "
                "result.family holds them, and goal child has other shares"
            )

    def _average(self, shares: Shares) -> nn.Module:
        return average(
            self.averaged,
            self.groups,
            self.couplings,
            shares,
            self.labels,
            self.template,
            self.owners,
            self.information,
        )

    @isolated()
    def renormalise(
        self,
        child: nn.Module,
        couplings: Sequence[Couplings],
        shares: Shares | Sequence[float],
        method: str | None = None,
    ) -> None:
        """Renormalise an average of the parents in place, as the recipe says, or any network by another method.

        As the recipe says, layers of which all that is before them is kept apart have their parents' statistics still.
        """
        if method is not None:
            self._renormalise(child, couplings, shares, method)
        else:
            self._renormalise(child, couplings, shares, self.recipe.renorm_after, self._settled)

    def _renormalise(
        self,
        child: nn.Module,
        couplings: Sequence[Couplings],
        shares: Shares | Sequence[float],
        method: str,
        kept: Sequence[str] = (),
    ) -> None:
        merged = Merged(self.averaged, self.groups, couplings, shares, self.example)
        images = None if self.calibration is None else for_statistics(self.calibration, self.recipe)
        renormalise(child, method, images, merged, kept)

    def _refit(self, child: nn.Module, shares: Shares, keeper: Keeper) -> Together | None:
        recipe = self.recipe
        return self._refit_from(child, shares, keeper.seen, recipe.targets, recipe.refit_steps, keeper.held)

    def _refit_from(
        self, child: nn.Module, shares: Shares, images: Loader, targets: str, steps: int, held: Loader | None = None
    ) -> Together | None:
        return refit_layers(
            child,
            self.averaged,
            self.groups,
            self.couplings,
            shares,
            images,
            method=self.recipe.refit if self.recipe.refits else "ridge",
            targets=targets,
            steps=steps,
            augment=Augmentation.suited_to(images.image_shape) if self.recipe.augment else None,
            labels=self.labels,
            joint=self.joint,
            seed=self.recipe.seed,
            held=held,
        )

    def _family(self, alone: Sequence[nn.Module]) -> Family:
        assert self.calibration is not None
        assert self.example is not None
        return Family(
            self.averaged,
            self.groups,
            self.labels,
            self.template,
            alone,
            self.teachers,
            self.joint,
            self.recipe,
            self.calibration,
            self.example,
            self._average,
            self._refit_from,
        )


class _Clock:
    """Names each step as it begins, and measures its wall-clock seconds."""

    def __init__(self, on_step: OnStep | None, model: nn.Module) -> None:
        self.on_step, self.model = on_step, model
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.on_step is not None:
            self.on_step(name)
        started = time.perf_counter()
        yield
        _wait_for_device(self.model)
        self.seconds[name] = time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class Aligned:
    """Parents whose channels are matched: a fusion before anything is merged.

    Attributes
    ----------
    recipe
        The settings, with its refit and, where one was chosen, its distance.
    shares
        One per parent.
    parents
        As they were given.
    models
        What is matched: the parents at the child's width, with renewed statistics, one head or folded scales where they
        were changed so.
    groups, couplings
        The channel groups, and a mapping of group name to coupling per parent.
    labels, template, example
        As in `FusionResult`.
    teaching, taught
        What prepares the parents as teachers, and the teachers.
    alone
        The parents as networks by themselves, where they know the same labels.
    brought, unmatched, not_converged, refit_reason, folded
        As in `FusionResult`, where the first is `widths`.
    step
        Measures the steps.
    """

    recipe: Recipe
    shares: tuple[float, ...]
    parents: Sequence[nn.Module]
    models: Sequence[nn.Module]
    groups: ChannelGroups
    couplings: list[Couplings]
    labels: LabelSets | None
    template: nn.Module | None
    example: Tensor | None
    teaching: Callable[..., Teachers]
    taught: Teachers
    alone: Sequence[nn.Module]
    brought: Brought | None
    unmatched: Sequence[nn.Module]
    not_converged: Sequence[str]
    refit_reason: str
    folded: bool
    step: _Clock


@isolated()
def fuse(
    models: Sequence[nn.Module],
    recipe: Recipe | None = None,
    calibration: Loader | None = None,
    *,
    example: Tensor | None = None,
    groups: ChannelGroups | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    template: nn.Module | None = None,
    allow_fixed: bool | None = None,
    further: Further | None = None,
    shared: SharedMoments | None = None,
    on_step: OnStep | None = None,
) -> FusionResult:
    """Fuse parents of one architecture into a child.

    Groups are found and proved on parent 0, every other parent is aligned to it, the aligned weights are averaged and
    the child's BatchNorm statistics recomputed; then it is trained on, where the recipe says so. The parents are only
    read, and copied at the start: several threads may fuse the same ones, which is done one fusion after another. A
    caller's autocast, `no_grad`, inference mode or default type changes nothing in the child.

    Where their widths differ, those of another width than the child's are first brought to it, each matched to a parent
    of the child's width (`Widths`).

    Parameters
    ----------
    models
        Two or more parents with equal tensor names, on one device; their widths may differ.
    recipe
        Settings; the defaults where None.
    calibration
        Unlabelled training images (labels are not read). May be None where the recipe needs none.
    example
        An input (1, C, H, W) to trace with; one calibration image where None.
    groups
        Channel groups of this architecture, to skip finding them again, and proving them where they are proved; not
        used where widths differ.
    labels
        For every parent, the labels that its outputs stand for in order, where they differ. The child has one output
        for each of all labels, ascending.
    template
        A network of the same architecture which says what the child is, with that many outputs, or of a width that no
        parent has; left as it was.
    allow_fixed
        Where a part of the network could not be followed or proved (see `not_followed`), leave its channels where they
        are, warn, and fuse the rest. By default raise where that is more than half of the parameters that reach the
        output; where False, always.
    further
        The training images, where the recipe says to distil or to fine-tune.
    shared
        Moments of these parents and groups, for several fusions of them: none is collected twice.
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
    recipe = recipe or Recipe()
    trains = recipe.distil > 0 or recipe.finetune > 0
    if trains and further is None:
        raise RecipeError("distil and finetune need the training images: give further=Further(data)")
    aligned = _aligned(models, recipe, calibration, example, groups, labels, template, allow_fixed, shared, on_step)
    recipe, shares, models, groups, couplings = (
        aligned.recipe,
        aligned.shares,
        aligned.models,
        aligned.groups,
        aligned.couplings,
    )
    sets, template, taught, brought, step = (
        aligned.labels,
        aligned.template,
        aligned.taught,
        aligned.brought,
        aligned.step,
    )
    unmatched, teachers, alone, seconds = aligned.unmatched, taught.models, aligned.alone, step.seconds
    choice = Chosen(Shares(shares))
    with step("merge"):
        apart: Apart | None = None
        if recipe.keeps_apart:
            given = example if example is not None else _example(calibration)
            apart = keep_apart(models, groups, couplings, recipe, given, calibration, template, sets, shares)
            models, unmatched, template, groups = apart.models, apart.unmatched, apart.template, apart.groups
            couplings = [{g.name: Coupling.identity(g.size) for g in groups.free} for _ in models]
        information = None
        if recipe.average == "fisher" and calibration is not None:
            information = [fisher_information(model, calibration, seed=recipe.seed) for model in models]
        owners = None if apart is None else apart.owners
        child = average(models, groups, couplings, shares, sets, template, owners, information)
    result = FusionResult(
        child,
        groups,
        couplings,
        recipe,
        seconds,
        models,
        calibration,
        sets,
        template,
        aligned.not_converged,
        brought,
        unmatched,
        apart,
        teachers,
        taught.joint,
        choice,
        information,
        aligned.example,
        folded=aligned.folded,
        refit_reason=aligned.refit_reason,
        parents=aligned.parents,
    )
    if recipe.weights_by != "network" and calibration is not None and result.example is not None:
        with step("shares"):
            choice = shares_of_parts(
                models, groups, recipe, result.example, calibration, result._average, teachers, sets, joint=taught.joint
            )
            child = result._average(choice.shares)
        result = replace(result, child=child, chosen=choice)
    sound = Soundness(teachers, calibration, result.example)
    sound.after("the merge", child)
    refitted: Together | None = None
    if recipe.goal == "best":
        with step("best"):
            if brought is not None:
                alone = () if taught.joint else models
            family = result._family(alone).find()
        child = best_of(family).network
        result = replace(result, child=child, family=family)
        sound.after("goal best", child)
    else:
        with step("refit" if recipe.refits else "renorm"):
            child, refitted, steps = result._finished(child, choice.shares)
        result = replace(result, child=child, steps=steps)
        sound.after(f"refit {recipe.refit}" if recipe.refits else f"renorm {recipe.renorm}", child)
        for done in result.steps:
            if not (done.kept or done.left_nothing_out or done.name == "renorm reset"):
                warnings.warn(f"{done}: the child stays as it was", DepfuseWarning, stacklevel=3)
    made = settled(
        recipe.changed(refit="none") if result.refit_left_out else recipe,
        len(models),
        renorm=result.renormed,
        renewed=taught.renewed,
        joint=taught.joint,
        widths=brought,
        template=template,
    )
    result = replace(result, recipe=made)
    if trains and further is not None:
        if on_step is not None:
            on_step("train")
        # At another width the parents say something else; where they know other labels, mixtures of their streams hold
        # less than the child can learn.
        alike = brought is None and sets is None and not result.joint
        if recipe.distil and result.joint and not recipe.labelled:
            # More images than were there for calibration make a better head.
            many = further.images(next(child.parameters()).device, recipe.seed)
            always = recipe.changed(joint_head="always")
            teachers = aligned.teaching(recipe=always, calibration=many).models
            result = replace(result, teachers=teachers)
        teacher = Ensemble(teachers, shares, sets, joint=result.joint)
        seconds |= further.train(child, teacher, "child", recipe, refitted if alike else None)
        sound.after("the training", child)
    sound.check()
    sound.check_spread(child)
    return result


@isolated()
def match(
    models: Sequence[nn.Module],
    recipe: Recipe | None = None,
    calibration: Loader | None = None,
    *,
    example: Tensor | None = None,
    groups: ChannelGroups | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    template: nn.Module | None = None,
    allow_fixed: bool | None = None,
    shared: SharedMoments | None = None,
    on_step: OnStep | None = None,
) -> Aligned:
    """Match the channels of parents as `fuse` does, which begins so; the arguments are its own."""
    return _aligned(
        models, recipe or Recipe(), calibration, example, groups, labels, template, allow_fixed, shared, on_step
    )


def _aligned(
    models: Sequence[nn.Module],
    recipe: Recipe,
    calibration: Loader | None,
    example: Tensor | None,
    groups: ChannelGroups | None,
    labels: Sequence[Sequence[int]] | None,
    template: nn.Module | None,
    allow_fixed: bool | None,
    shared: SharedMoments | None,
    on_step: OnStep | None,
) -> Aligned:
    sets = label_sets(labels, models, template)
    check_parents(models if template is None or sets is not None else [*models, template], sets)
    image = example if example is not None or calibration is None else _example(calibration)
    check_alike(models if template is None else [*models, template], image)
    given_models = models
    copies: Sequence[nn.Module] = [private_copy(model, image) for model in models]
    template = None if template is None else evaluation_copy(template)
    shared = None if shared is None else shared.known_as(models, copies)
    models = copies
    like = template or widest(models, recipe.width_of)
    recipe, refit_reason = resolve_refit(recipe, models, like, calibration, sets)
    shares = recipe.shares(len(models))
    if calibration is None and (recipe.weights_by != "network" or recipe.average == "fisher"):
        setting = f"average {recipe.average}" if recipe.weights_by == "network" else f"weights_by {recipe.weights_by}"
        raise RecipeError(f"{setting} needs calibration images: give at least 4, better 1000")
    if recipe.refits and calibration is None:
        raise RecipeError(f"refit {recipe.refit} needs calibration images: give at least 2, better 2000")
    if calibration is None and recipe.goal == "best":
        raise RecipeError("goal best needs calibration images: give at least 8, better 2000")
    _check_renorm(recipe, models[0])
    alone = models if sets is None else ()
    teaching = partial(prepared, models, shares=shares, labels=sets, template=template)
    taught = teaching(recipe=recipe, calibration=calibration)
    models, sets = taught.models, taught.labels
    if taught.joint:
        template = None
    unequal = sets is None and any(shapes_of(m) != shapes_of(models[0]) for m in (*models, template or models[0]))
    if unequal and (recipe.universe or recipe.reference is not None or recipe.order is not None):
        raise RecipeError(
            "parents of unequal widths are matched to the one that has the child's width: leave out --universe, "
            "--reference and --order"
        )
    if unequal and template is not None and recipe.width_of is not None:
        raise RecipeError("the child's width is given twice: leave out --width-of, or --width and --child-arch")
    check_widths(recipe, one_width=not unequal)
    step = _Clock(on_step, models[0])
    widths: Widths | None = None
    with step("groups"):
        if groups is None or unequal:
            given = example if example is not None else _example(calibration)
            if unequal:
                widths = Widths(models, recipe, given, template, joint=taught.joint)
                groups = widths.groups
            else:
                groups = prove_groups(models[0], find_groups(models[0], given), given, seed=recipe.seed)
        elif (wrong := groups.misfit(dict(copies[0].named_parameters(remove_duplicate=False)))) is not None:
            raise GroupError(f"the groups are of another network than the parents: {wrong}; find them on a parent")
        elif groups.proof_error is None:
            given = example if example is not None else _example(calibration)
            groups = prove_groups(models[0], groups, given, seed=recipe.seed)
        check_followed(models[0], groups, allow_fixed, stacklevel=5)
    brought: Brought | None = None
    unmatched = models
    with step("align"):
        if widths is not None:
            brought, unmatched = widths.bring(calibration), widths.as_they_stand()
            models = brought.models
        folded = load_solver(recipe.solver).folds and has_batch_norm(models[0])
        if folded:
            given = example if example is not None else _example(calibration)
            reference = recipe.target if brought is None else brought.reference
            models, groups = fold(models, groups, given, models[reference])
        numbers = list(range(len(models))) if brought is None else [brought.reference, *sorted(brought.unsettled)]
        chosen = [models[number] for number in numbers]
        judge = (
            None
            if calibration is None
            else Disagreement(
                chosen,
                groups,
                "auto",
                calibration,
                sets,
                template,
                recipe.target,
                joint=taught.joint,
            )
        )
        couplings: list[Couplings] = [{g.name: Coupling.identity(g.size) for g in groups.free} for _ in models]
        counting = recipe if brought is None else recipe.changed(weights=_among(shares, numbers))
        alignment = align(chosen, groups, counting, calibration, judge, shared)
        not_converged = alignment.not_converged if brought is None else brought.not_converged + alignment.not_converged
        for number, found in zip(numbers, alignment.couplings, strict=True):
            couplings[number] = found
        if brought is None:
            recipe = resolve_distance(recipe, alignment.distances)
    step.seconds["choose"] = (0.0 if judge is None else judge.seconds) + (0.0 if brought is None else brought.seconds)
    step.seconds["align"] -= step.seconds["choose"]
    return Aligned(
        recipe,
        shares,
        given_models,
        models,
        groups,
        couplings,
        sets,
        template,
        image,
        teaching,
        taught,
        alone,
        brought,
        unmatched,
        not_converged,
        refit_reason,
        folded,
        step,
    )


def naive_average(
    models: Sequence[nn.Module],
    shares: Sequence[float],
    groups: ChannelGroups,
    labels: Sequence[Sequence[int]] | None = None,
    template: nn.Module | None = None,
) -> nn.Module:
    """The average of parents of one width as they are, without any alignment; the arguments are those of `fuse`."""
    sets = label_sets(labels, models, template)
    check_parents(models, sets)
    for number, model in enumerate(models if sets is None else (), start=1):
        if shapes_of(model) != shapes_of(models[0]):
            raise RecipeError(f"parent {number} has another width than parent 1: bring them to one width first")
    identities = {group.name: Coupling.identity(group.size) for group in groups.free}
    return average(models, groups, [identities] * len(models), shares, sets, template)


def label_sets(
    labels: Sequence[Sequence[int]] | None, models: Sequence[nn.Module], template: nn.Module | None
) -> LabelSets | None:
    """The parents' labels where they differ, None where they do not.

    Raises
    ------
    RecipeError
        They do not fit the parents, or differ without a template.
    """
    if labels is None:
        return None
    sets = LabelSets.create(labels)
    sets.check(models, template)
    return None if sets.same else sets


def check_parents(models: Sequence[nn.Module], labels: LabelSets | None = None) -> None:
    """Raise `RecipeError` unless there are two parents or more with finite tensors of equal names and ranks.

    Nor may a variance be negative.

    Where the parents have different labels, the shapes may differ by their numbers only.
    """
    if len(models) < 2:
        raise RecipeError(f"{len(models)} parent given: fusion needs at least two")
    first = models[0].state_dict()
    for number, model in enumerate(models, start=1):
        state = model.state_dict()
        if different := first.keys() ^ state.keys():
            key = next(key for key in (*first, *state) if key in different)
            raise RecipeError(
                f"parent {number} is of another architecture or depth than parent 1: {key} is in one of them only"
            )
        for key, tensor in state.items():
            fits = tensor.dim() == first[key].dim() if labels is None else tensor.shape == first[key].shape
            if not fits and not _differs_by_labels(tensor, first[key], number, labels):
                raise RecipeError(
                    f"parent {number} does not fit parent 1: {key} has shape {tuple(tensor.shape)}, "
                    f"not {tuple(first[key].shape)}"
                )
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise RecipeError(f"parent {number} holds NaN or infinite values in {key}: it cannot be fused")
        check_variances(state, number)


def _differs_by_labels(tensor: Tensor, first: Tensor, number: int, labels: LabelSets | None) -> bool:
    if labels is None or tensor.dim() != first.dim():
        return False
    different = [sizes for sizes in zip(tensor.shape, first.shape, strict=True) if sizes[0] != sizes[1]]
    return different == [(len(labels.sets[number - 1]), len(labels.sets[0]))]


def _check_renorm(recipe: Recipe, model: nn.Module) -> None:
    """Raise `RecipeError` where the recipe wants statistics that the network does not have."""
    method = chosen_method(recipe.renorm, model)
    if recipe.parents_renorm == "reset":
        chosen_method("reset", model)
    if recipe.augment_statistics and method == "none":
        raise RecipeError(
            f"augment_statistics has no statistics to renew: {type(model).__name__} has no BatchNorm; choose renorm "
            "repair or rescale, or leave it out"
        )


def _example(calibration: Loader | None) -> Tensor:
    if calibration is None:
        raise RecipeError("give an example input or calibration images: the network must be run once to be traced")
    images, _ = next(iter(calibration))
    return images[:1]


def _among(shares: Sequence[float], numbers: Sequence[int]) -> tuple[float, ...] | None:
    """The shares of some parents among themselves; None, equal ones, where they have none."""
    total = sum(shares[number] for number in numbers)
    return tuple(shares[number] / total for number in numbers) if total > 0 else None


def _wait_for_device(model: nn.Module) -> None:
    tensor = next(model.parameters(), None)
    if tensor is not None and tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
