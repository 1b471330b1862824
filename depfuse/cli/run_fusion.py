"""One fusion from files to files, for `depfuse fuse` and `depfuse path`."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import torch

from depfuse.cli.along_path import PathBetween, begin_strip, evaluate_methods, evaluate_paths, say_what_a_plot_costs
from depfuse.cli.fused import Fused
from depfuse.cli.fusion_files import layout_of_child, write_files
from depfuse.cli.fusion_report import path_report, report_of
from depfuse.cli.inputs import Inputs, read_inputs, read_template, say_all_are_used, say_what_is_assumed
from depfuse.cli.methods import needs_images
from depfuse.cli.request import Request
from depfuse.data import Loader, calibration_loader
from depfuse.distributed import team as processes
from depfuse.distributed.device import resolve_device
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.evaluate import path_alphas
from depfuse.fusion.agreement import AgreementComparison, compare_agreement
from depfuse.fusion.comparison import Comparison, compare
from depfuse.fusion.pipeline import fuse
from depfuse.fusion.widths import shapes_of
from depfuse.progress import Work
from depfuse.recipe import Recipe
from depfuse.recipe.renorms import renorm_facts
from depfuse.renorm import chosen_method
from depfuse.report import FusionReport, PathReport, Seconds
from depfuse.teach.ask import label_weight
from depfuse.teach.distil import Distillation


def run(request: Request, work: Work) -> FusionReport | PathReport:
    """Fuse, evaluate, and write what was asked for; nothing is written unless all of it succeeded."""
    device = resolve_device(request.options.device)
    work.step("reading networks and data")
    inputs = _read(request, device)
    layout = layout_of_child(request, inputs)
    strip = None if request.picture is None else begin_strip(inputs)
    request, inputs = _with_labels(request, inputs)
    if request.points is not None:
        _check_path(inputs)
    architecture, template = read_template(
        inputs, request.fusion.width, request.fusion.child_arch, request.recipe.task.name
    )
    calibration = _calibration(request.recipe, inputs, needs_images(request.methods))
    training = _training(request, inputs)
    say_what_a_plot_costs(request, inputs)
    test = inputs.test_loader(request.recipe.calibration.batch_size)
    result = fuse(
        replace(inputs.parents(template), test=test),
        inputs.recipe(request.recipe),
        calibration,
        training=training,
    )
    path_refitted = request.path_refitted or not result.recipe.refits
    say_what_is_assumed(result.meaning)
    fused = Fused(inputs, result, template, calibration, test, path_refitted, layout, strip)

    started = time.perf_counter()
    compared = (compare if inputs.data.labelled else compare_agreement)(result, test, training=training)
    result.keep(compared)
    if training is not None and compared.baseline is None and request.fusion.out_parent is not None:
        warnings.warn(
            f"--out-parent {request.fusion.out_parent} is not written: no parent could get a head over the labels of"
            " all, as it needs calibration images and a network that can be refitted",
            DepfuseWarning,
            stacklevel=2,
        )
    path = None if request.points is None else _path(request, fused, compared, work)
    seconds = Seconds(**result.seconds, evaluate=time.perf_counter() - started)
    report: FusionReport | PathReport = report_of(
        fused, compared, request, architecture=architecture or inputs.architectures[result.like], seconds=seconds
    )
    if path is not None:
        report = path_report(report, path, refitted=fused.path_refitted)
    write_files(request, report, fused, compared)
    if training is not None:
        training.delete_states()
    return report


def _read(request: Request, device: torch.device) -> Inputs:
    """Read the parents and the data, with as many test images as were asked for."""
    fusion = request.fusion
    return read_inputs(
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


def _with_labels(request: Request, inputs: Inputs) -> tuple[Request, Inputs]:
    """Give the images the labels of a file where there is one, and the recipe their number.

    Raises
    ------
    RecipeError
        More images have labels than are drawn, or the recipe wants labels and there are none.
    """
    if request.fusion.labels_from is None:
        if request.recipe.teach.labelled:
            inputs.require_labels("teach.labelled")
        return request, inputs
    inputs, count = inputs.with_labels_of(request.fusion.labels_from, request.recipe.seed)
    if count > request.recipe.calibration.images:
        raise RecipeError(f"{count} images have labels: give at least `calibration.images={count}`")

    def labelled(recipe: Recipe) -> Recipe:
        own = "label_weight" in recipe.teach.model_fields_set
        weight = recipe.teach.label_weight if own else label_weight(count)
        return recipe.changed({"teach.labelled": count, "teach.label_weight": weight})

    methods = {name: labelled(recipe) for name, recipe in request.methods.items()}
    return replace(request, recipe=labelled(request.recipe), methods=methods), inputs


def _check_path(inputs: Inputs) -> None:
    """Raise `RecipeError` where there is no path between the parents."""
    if inputs.labels is not None:
        raise RecipeError("a path needs parents that know the same labels: `depfuse fuse` without --plot fuses these")
    if any(shapes_of(model) != shapes_of(inputs.models[0]) for model in inputs.models):
        raise RecipeError(
            "a path needs parents of one width, with tensors of the same shapes: where they differ in width alone,"
            " `depfuse fuse` without --plot fuses them"
        )


def _path(request: Request, fused: Fused, compared: Comparison | AgreementComparison, work: Work) -> PathBetween:
    """Evaluate the path that was asked for, with fewer points where each is refitted."""
    assert request.points is not None
    points = min(request.points, request.refitted_points) if fused.result.recipe.refits else request.points
    ends, alphas = (compared.parents[0], compared.parents[1]), path_alphas(points)
    matched, naive = evaluate_paths(fused, ends, alphas, work)
    return PathBetween(matched, naive, evaluate_methods(request, fused, ends, matched, work))


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
    say_all_are_used(recipe, inputs.data)
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
