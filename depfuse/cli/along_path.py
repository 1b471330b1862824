"""Evaluate networks between two parents, for `depfuse path` and `depfuse fuse --plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from depfuse.cli.console import remark
from depfuse.cli.fused import Ends, Fused
from depfuse.cli.inputs import Inputs
from depfuse.cli.methods import method_path
from depfuse.cli.request import Request
from depfuse.data.stream import batches_of
from depfuse.evaluate import PathPoint, evaluate_path
from depfuse.fusion.comparison import matched_average, naive_child
from depfuse.fusion.pipeline import fuse
from depfuse.progress import Work, unseen
from depfuse.report import MethodPath
from depfuse.report.strip import Strip, detail

LOOKED_AT = 100  # test images, of which a strip shows one
AVERAGE, ALIGNED, REFITTED = "average", "aligned", "refitted"  # rows of a strip of pictures


@dataclass(frozen=True)
class PathBetween:
    """Networks between two parents, matched and not, and the same by other methods."""

    matched: list[PathPoint]
    naive: list[PathPoint]
    methods: list[MethodPath]


def say_what_a_plot_costs(request: Request, inputs: Inputs) -> None:
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


def begin_strip(inputs: Inputs) -> Strip:
    """Begin a strip with the test image, of the first ones, that has most detail."""
    few = inputs.data.required_test.take(slice(0, LOOKED_AT))
    images = [image for image, _ in batches_of(few, inputs.data.preprocessing, batch_size=1, device=inputs.device)]
    if all(isinstance(image, torch.Tensor) and image.dim() == 4 for image in images):
        images = sorted(images, key=lambda image: float(detail(image)), reverse=True)
    return Strip.of(inputs.models[0], images[0])


def evaluate_paths(
    fused: Fused, ends: Ends, alphas: Sequence[float], work: Work
) -> tuple[list[PathPoint], list[PathPoint]]:
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


def _matched_path(fused: Fused, ends: Ends, alphas: Sequence[float], work: Work, row: str = ALIGNED) -> list[PathPoint]:
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


def evaluate_methods(request: Request, fused: Fused, ends: Ends, path: list[PathPoint], work: Work) -> list[MethodPath]:
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
