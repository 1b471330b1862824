"""One fusion from files to files, for `depfuse fuse` and `depfuse path`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from depfuse.cli.console import remark
from depfuse.cli.inputs import Inputs, read_inputs, read_template
from depfuse.cli.methods import method_path, needs_images
from depfuse.cli.request import Request
from depfuse.cli.wording import in_options
from depfuse.data import Loader, calibration_loader
from depfuse.data.stream import Stream, batches_of
from depfuse.distributed import team as processes
from depfuse.distributed.device import resolve_device
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.evaluate import (
    Agreement,
    PathPoint,
    Scores,
    evaluate_agreement,
    evaluate_path,
    path_alphas,
)
from depfuse.fusion.agreement import AgreementComparison, agreement_verdict, compare_agreement
from depfuse.fusion.comparison import Comparison, compare, matched_average, naive_child
from depfuse.fusion.contenders import advise_on
from depfuse.fusion.pipeline import fuse
from depfuse.fusion.pretrained import save_pretrained
from depfuse.fusion.result import FusionResult
from depfuse.fusion.saving import fusion_card
from depfuse.fusion.verdict import verdict
from depfuse.fusion.widths import shapes_of
from depfuse.io.atomic_files import replacing
from depfuse.io.cards import Card, Parent
from depfuse.io.checkpoint import state_digest, write_checkpoint
from depfuse.io.output_files import is_folder, is_pickled
from depfuse.io.same_layout import Layout, layout_of, write_content
from depfuse.models import with_classes
from depfuse.progress import Work, unseen
from depfuse.recipe import Recipe
from depfuse.recipe.renorms import renorm_facts
from depfuse.renorm import chosen_method
from depfuse.report import (
    Barrier,
    FamilyRow,
    FusionReport,
    GroupsSummary,
    MethodPath,
    NetworkScores,
    PathReport,
    PathRow,
    ScoreValues,
    Seconds,
    SelfTrainingSummary,
    SharesSummary,
    describe_environment,
)
from depfuse.report.plot_kind import plot_kind
from depfuse.report.strip import Strip, detail
from depfuse.report.tables import short_names
from depfuse.tasks.selection import selected
from depfuse.teach.ask import label_weight
from depfuse.teach.distil import Distillation

LOOKED_AT = 100  # test images, of which a strip shows one
AVERAGE, ALIGNED, REFITTED = "average", "aligned", "refitted"  # rows of a strip of pictures
Ends = tuple[Scores | Agreement, Scores | Agreement]


@dataclass(frozen=True)
class _Fused:
    """A fusion with everything that its path needs.

    `template` is as `fuse` was given it, and networks on the path are refitted as the recipe says where
    `path_refitted`. The child's file has a `layout` where that is one of another program. A `strip` shows one image
    along the path.
    """

    inputs: Inputs
    result: FusionResult
    template: nn.Module | None
    calibration: Loader | None
    test: Loader | Stream
    path_refitted: bool = True
    layout: Layout | None = None
    strip: Strip | None = None

    @property
    def renorm(self) -> str:
        """How the child was renormalised."""
        recipe = self.result.recipe  # ridge sets the child's statistics itself
        return chosen_method("auto" if recipe.refit.name == "ridge" else recipe.renorm.name, self.inputs.models[0])

    @property
    def score(self) -> Callable[[nn.Module], Agreement] | None:
        """How a network is scored without labels; None with labels."""
        if self.inputs.data.labelled:
            return None
        sets, task = self.result.parent_labels, self.result.meaning.scored
        parents = selected(self.result.scored_parents, self.result.meaning.scores)
        return lambda network: evaluate_agreement(parents, [network], self.test, sets=sets, task=task)[2][0]

    def counting(self, network: nn.Module) -> nn.Module:
        """Let a network give the tensor that counts."""
        return selected([network], self.result.meaning.scores)[0]

    def show(self, row: str, alpha: float, network: nn.Module) -> nn.Module:
        """Add a network to the strip, if there is one, and return it, see `counting`."""
        counting = self.counting(network)
        if self.strip is not None:
            self.strip.add(row, alpha, counting)
        return counting


def run(request: Request, work: Work) -> FusionReport | PathReport:
    """Fuse, evaluate, and write what was asked for; nothing is written unless all of it succeeded."""
    device = resolve_device(request.options.device)
    work.step("reading networks and data")
    fusion = request.fusion
    inputs = read_inputs(
        request.parents,
        fusion.arch,
        request.data,
        device,
        fusion.classes,
        fusion.background,
        fused=True,
        trust=fusion.trust,
        key=fusion.key,
        judged=True,
        task=request.recipe.task.name,
        seed=request.recipe.seed,
    ).with_fewer_test_images(fusion.test)
    layout = _layout(request, inputs)
    strip = None if request.picture is None else _strip(inputs)
    if fusion.labels_from is not None:
        inputs, count = inputs.with_labels_of(fusion.labels_from, request.recipe.seed)
        if count > request.recipe.calibration.images:
            raise RecipeError(f"{count} images have labels: give at least `calibration.images={count}`")
        recipe = request.recipe.changed({"teach.labelled": count, "teach.label_weight": label_weight(count)})
        request = replace(request, recipe=recipe, methods=dict.fromkeys(request.methods, recipe))
    elif request.recipe.teach.labelled:
        inputs.require_labels("teach.labelled")
    if inputs.labels is not None and request.points is not None:
        raise RecipeError("a path needs parents that know the same labels: `depfuse fuse` without --plot fuses these")
    if request.points is not None and any(shapes_of(m) != shapes_of(inputs.models[0]) for m in inputs.models):
        raise RecipeError(
            "a path needs parents of one width, with tensors of the same shapes: where they differ in width alone,"
            " `depfuse fuse` without --plot fuses them"
        )
    architecture, template = read_template(
        inputs, request.fusion.width, request.fusion.child_arch, request.recipe.task.name
    )
    calibration = _calibration(request.recipe, inputs, needs_images(request.methods))
    training = _training(request, inputs)
    _say_what_a_plot_costs(request, inputs)
    test = inputs.test_loader(request.recipe.calibration.batch_size)
    result = fuse(
        replace(inputs.parents(template), test=test),
        inputs.recipe(request.recipe),
        calibration,
        training=training,
    )
    path_refitted = request.path_refitted or not result.recipe.refits
    fused = _Fused(inputs, result, template, calibration, test, path_refitted, layout, strip)

    started = time.perf_counter()
    compared: Comparison | AgreementComparison
    if inputs.data.labelled:
        compared = compare(result, fused.test, training=training)
    else:
        compared = compare_agreement(result, fused.test, training=training)
    result.keep(compared)
    if training is not None and compared.baseline is None and request.fusion.out_parent is not None:
        warnings.warn(
            f"--out-parent {request.fusion.out_parent} is not written: no parent could get a head over the labels of"
            " all, as it needs calibration images and a network that can be refitted",
            DepfuseWarning,
            stacklevel=2,
        )
    paths, methods = None, []
    if request.points is not None:
        points = min(request.points, request.refitted_points) if result.recipe.refits else request.points
        ends, alphas = (compared.parents[0], compared.parents[1]), path_alphas(points)
        paths = _paths(fused, ends, alphas, work)
        methods = _methods(request, fused, ends, paths[0], work)
    seconds = Seconds(**result.seconds, evaluate=time.perf_counter() - started)

    of_parents: Sequence[Scores | Agreement] = compared.parents
    of_family: Sequence[Scores | Agreement] = compared.family
    parent_rows = [
        NetworkScores.at(checkpoint.path, checkpoint.digest, scores)
        for checkpoint, scores in zip(inputs.checkpoints, of_parents, strict=True)
    ]
    baseline = compared.baseline
    family = [
        FamilyRow.of_candidate(candidate, scores, candidate is result.best)
        for candidate, scores in zip(result.family, of_family, strict=True)
    ]
    advice = None
    if isinstance(compared, Comparison):
        advice = advise_on(
            result,
            compared,
            child=request.out,
            parents=[checkpoint.path for checkpoint in inputs.checkpoints],
            baseline=request.fusion.out_parent,
        )
        words = verdict(advice, result.best.name if result.best else None)
    else:
        words = agreement_verdict(compared, short_names(parent_rows))
    report = FusionReport(
        parents=parent_rows,
        ensemble=ScoreValues.of(compared.ensemble),
        teacher=None if compared.teacher is None else ScoreValues.of(compared.teacher),
        heads=[ScoreValues.of(scores) for scores in compared.heads],
        trained_parent=None
        if baseline is None
        else NetworkScores.at(inputs.checkpoints[baseline.parent].path, None, baseline.scores),
        naive=ScoreValues.of(compared.naive),
        naive_renorm=ScoreValues.of(compared.renewed),
        child=NetworkScores.at(request.out, state_digest(result.child.state_dict()), compared.child),
        verdict=in_options(words),
        advice=advice,
        widened=_widened(fused),
        converged=not result.not_converged,
        not_converged=list(result.not_converged),
        groups=GroupsSummary(
            count=result.groups.count,
            free_channels=result.groups.free_channels,
            proof_error=result.groups.proof_error,
            fixed=result.groups.fixed,
        ),
        shares=SharesSummary.of(result.chosen_shares),
        family=family,
        self_training=SelfTrainingSummary.of(result.self_trained),
        refit_reason=result.refit_reason or None,
        seconds=seconds,
        recipe=result.recipe.model_dump(mode="json"),
        architecture=architecture or inputs.architectures[result.like],
        data=inputs.data_name,
        preprocessing=inputs.data.preprocessing.model_dump(mode="json"),
        images=compared.child.count,
        environment=describe_environment(device),
        command=request.command,
    )
    if paths is not None:
        path, naive_path = paths
        report = PathReport(
            **report.model_dump(),
            path=[PathRow.at_point(point) for point in path],
            naive_path=[PathRow.at_point(point) for point in naive_path],
            barrier=Barrier.of(path, naive_path),
            methods=methods,
            path_refitted=fused.path_refitted,
        )
    _write(request, report, fused, compared)
    if training is not None:
        training.delete_states()
    return report


def _widened(fused: _Fused) -> bool:
    """Tell whether channels stand side by side in the child, so that its class alone does not give its shapes."""
    like = fused.inputs.checkpoints[fused.result.like].card
    return fused.result.partial_merge is not None or bool(like is not None and like.widened and fused.template is None)


def _calibration(recipe: Recipe, inputs: Inputs, wanted: bool = False) -> Loader | None:
    """Draw the calibration images; none where nothing in the recipe reads them, unless they are wanted."""
    renorm = chosen_method(recipe.renorm.name, inputs.models[0])
    needed = (
        wanted
        or recipe.align.criterion.name != "weights"
        or recipe.refits
        or recipe.merge.weights_by != "network"
        or recipe.merge.average == "fisher"
        or (renorm != "none" and renorm_facts(renorm).images)
    )
    if not needed and recipe.calibration.images < 2:
        return None
    loader = calibration_loader(
        inputs.data,
        recipe.calibration.images,
        batch_size=recipe.calibration.batch_size,
        device=inputs.device,
        seed=recipe.seed,
    )
    if processes.count() > len(loader):
        warnings.warn(
            f"{processes.count()} processes share {len(loader)} calibration batches, so that some have nothing to do: "
            f"give --nproc-per-node {len(loader)}, or more batches (--calibration, calibration.batch_size)",
            DepfuseWarning,
            stacklevel=2,
        )
    return loader


def _training(request: Request, inputs: Inputs) -> Distillation | None:
    """Build the training of the child, where the recipe has one; its state lies beside the child."""
    recipe = request.recipe
    if not (recipe.trains):
        return None

    state = None if request.out is None else request.out.with_name(f"{request.out.name}.training")
    return Distillation(inputs.data, resume=state)


def _say_what_a_plot_costs(request: Request, inputs: Inputs) -> None:
    """Say how many networks a plot is drawn of and how long that takes, before anything is fused."""
    if request.points is None or request.fusion.plot is None or request.options.quiet:
        return
    refit, curves = request.recipe.refit.name, max(1, len(request.methods))
    points, few = (max(0, most - 2) for most in (request.points, min(request.points, request.refitted_points)))
    counts = {"none": f"{points * curves}", "auto": f"{points * curves} (or {few * curves} that are refitted)"}
    if not request.path_refitted and refit != "none":
        remark(
            f"the plot takes {few} matched and {few} naive averages, each with a pass over"
            f" {len(inputs.data.required_test):,} test images; none is refitted, as `depfuse path` does"
        )
        return
    refitted = "" if refit == "none" else "; refitting one takes as long as refitting the child"
    remark(
        f"the plot takes {counts.get(refit, f'{few * curves} refitted')} matched networks and"
        f" {few if refit not in counts else points} naive averages, each with a pass over"
        f" {len(inputs.data.required_test):,} images{refitted}"
    )


def _paths(fused: _Fused, ends: Ends, alphas: Sequence[float], work: Work) -> tuple[list[PathPoint], list[PathPoint]]:
    """Evaluate the naive path and the path, which differ by the couplings alone."""
    work.step("evaluating the naive path", total=len(alphas) - 2)
    naive = evaluate_path(
        ends,
        lambda alpha: fused.show(AVERAGE, alpha, naive_child(fused.result, (1.0 - alpha, alpha), fused.renorm)),
        fused.test,
        alphas,
        lambda _: work.advance(),
        score=fused.score,
        task=fused.result.meaning.scored,
    )
    refitted = fused.path_refitted and fused.result.recipe.refits
    if fused.strip is not None and refitted:
        for alpha in alphas[1:-1]:
            with unseen():
                fused.show(ALIGNED, alpha, matched_average(fused.result, (1.0 - alpha, alpha), fused.renorm))
    work.step("evaluating the path", total=len(alphas) - 2)
    matched = _matched_path(fused, ends, alphas, work, REFITTED if refitted else ALIGNED)
    if fused.strip is not None:
        for row in fused.strip.rows:
            for alpha, parent in zip((0.0, 1.0), fused.inputs.models, strict=True):
                fused.show(row, alpha, parent)
    return matched, naive


def _strip(inputs: Inputs) -> Strip:
    """Begin a strip with the test image, of the first ones, that has most detail."""
    few = inputs.data.required_test.take(slice(0, LOOKED_AT))
    images = [image for image, _ in batches_of(few, inputs.data.preprocessing, batch_size=1, device=inputs.device)]
    if all(isinstance(image, torch.Tensor) and image.dim() == 4 for image in images):
        images = sorted(images, key=lambda image: float(detail(image)), reverse=True)
    return Strip.of(inputs.models[0], images[0])


def _matched_path(
    fused: _Fused, ends: Ends, alphas: Sequence[float], work: Work, row: str = ALIGNED
) -> list[PathPoint]:
    def between(alpha: float) -> nn.Module:
        shares = (1.0 - alpha, alpha)
        with unseen():
            if fused.path_refitted:
                return fused.show(row, alpha, fused.result.at(shares))
            return fused.show(row, alpha, matched_average(fused.result, shares, fused.renorm))

    return evaluate_path(
        ends,
        between,
        fused.test,
        alphas,
        lambda _: work.advance(),
        score=fused.score,
        task=fused.result.meaning.scored,
    )


def _methods(request: Request, fused: _Fused, ends: Ends, path: list[PathPoint], work: Work) -> list[MethodPath]:
    """Evaluate the paths of all methods, in order; the first one's is known."""
    found = []
    for number, (name, recipe) in enumerate(request.methods.items()):
        if number == 0:
            found.append(method_path(name, fused.result, path))
            continue
        work.step(f"matching by {name}")
        groups = None if fused.result.folded else fused.result.groups
        result = fuse(
            replace(fused.inputs.parents(), groups=groups),
            fused.inputs.recipe(recipe),
            fused.calibration,
        )
        other = replace(fused, result=result, strip=None)
        alphas = [point.alpha for point in path]
        work.step(f"evaluating the path by {name}", total=len(alphas) - 2)
        found.append(method_path(name, result, _matched_path(other, ends, alphas, work)))
    return found


def _layout(request: Request, inputs: Inputs) -> Layout | None:
    """Read the layout of the first parent's file where the child is to have it."""
    if request.out is None or not is_pickled(request.out):
        return None
    keys = request.fusion.key
    return layout_of(request.parents[0], keys[0] if keys else None, inputs.models[0].state_dict())


def _write(
    request: Request,
    report: FusionReport | PathReport,
    fused: _Fused,
    compared: Comparison | AgreementComparison,
) -> None:
    """Write plot, report, trained parent and child; each takes its place only when all of them are complete."""
    with ExitStack() as complete:
        if request.fusion.plot is not None:
            from depfuse.report.plots import draw_family, draw_path  # here, as matplotlib takes a second

            plot = complete.enter_context(replacing(request.fusion.plot))
            if isinstance(report, PathReport):
                draw_path(report, plot, plot_kind(request.fusion.plot))
            else:
                draw_family(report, plot, plot_kind(request.fusion.plot))
        if request.picture is not None and fused.strip is not None:
            names = [label.rpartition(".")[0] or label for label in short_names(report.parents)]
            fused.strip.draw(complete.enter_context(replacing(request.picture)), names)
        if request.fusion.report is not None:
            text = report.model_dump_json(indent=2) + "\n"
            complete.enter_context(replacing(request.fusion.report)).write_text(text, encoding="utf-8")
        baseline, images = compared.baseline, compared.child.count
        if request.fusion.out_parent is not None and baseline is not None:
            path = complete.enter_context(replacing(request.fusion.out_parent))
            write_checkpoint(
                path, baseline.network.state_dict(), _card_of_parent(report, fused, baseline.parent, images)
            )
        if request.out is not None and is_folder(request.out):
            save_pretrained(fused.result, request.out, card=_card_of_child(report, fused, images))
        elif request.out is not None and fused.layout is not None:
            write_content(
                complete.enter_context(replacing(request.out)), fused.layout.content(fused.result.child.state_dict())
            )
        elif request.out is not None:
            write_checkpoint(request.out, fused.result.child.state_dict(), _card_of_child(report, fused, images))


def _card_of_child(report: FusionReport, fused: _Fused, images: int) -> Card:
    return _card(report, fused, report.architecture, report.child, images, widened=report.widened)


def _card_of_parent(report: FusionReport, fused: _Fused, number: int, images: int) -> Card:
    """Of the parent that was trained as long as the child, with the same teacher and for the same labels."""
    inputs = fused.inputs
    own, architecture = inputs.checkpoints[number].card, inputs.architectures[number]
    if inputs.labels is not None:
        architecture = with_classes(architecture, len(inputs.labels.joint))
    assert report.trained_parent is not None
    widened = own is not None and own.widened
    return _card(report, fused, architecture, report.trained_parent, images, widened=widened)


def _card(
    report: FusionReport, fused: _Fused, architecture: str, scores: ScoreValues, images: int, *, widened: bool
) -> Card:
    inputs = fused.inputs
    return fusion_card(
        fused.result,
        architecture,
        parents=[Parent(path=str(parent.path), digest=parent.digest) for parent in inputs.checkpoints],
        metrics={**scores.metrics, "images": images},
        data=report.data,
        preprocessing=inputs.data.preprocessing,
        names=inputs.names,
        widened=widened,
    )
