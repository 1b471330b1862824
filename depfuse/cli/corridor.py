"""One fusion from files to files, for `depfuse fuse` and `depfuse path`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from depfuse.checkpoint import Card, Parent, replacing, state_digest, write_checkpoint
from depfuse.cli.console import Work
from depfuse.cli.inputs import Inputs, check_architectures, read_inputs, read_template
from depfuse.cli.options import DataOptions, FusionOptions, RunOptions
from depfuse.cli.outputs import check_outputs, check_weights_name
from depfuse.data import Loader, calibration_loader
from depfuse.device import resolve_device
from depfuse.errors import RecipeError
from depfuse.evaluate import (
    PathPoint,
    Scores,
    evaluate_path,
    evaluate_together,
    evaluate_with_ensemble,
    path_alphas,
)
from depfuse.fuse import FusionResult, fuse, naive_average
from depfuse.recipe import Recipe
from depfuse.renorm import has_batch_norm, renormalise
from depfuse.report import (
    Barrier,
    FusionReport,
    GroupsSummary,
    NetworkScores,
    PathReport,
    PathRow,
    ScoreValues,
    Seconds,
    describe_environment,
    verdict,
)
from depfuse.report.plots import draw_path, plot_kind

STEPS = {
    "groups": "finding and proving channel groups",
    "align": "matching channels",
    "merge": "merging",
    "renorm": "renewing BatchNorm statistics",
}


@dataclass(frozen=True)
class Request:
    """What the user asked for: parents, data, recipe, and the files to write.

    `points` is the number of networks on the path between two parents, None where none is wanted.
    """

    parents: Sequence[Path]
    data: DataOptions
    recipe: Recipe
    options: RunOptions
    fusion: FusionOptions
    out: Path | None
    points: int | None
    command: list[str]


@dataclass(frozen=True)
class _Fused:
    """A fusion with everything that its path needs."""

    inputs: Inputs
    result: FusionResult
    calibration: Loader | None
    test: Loader

    @property
    def renorm(self) -> str:
        """How the child was renormalised."""
        return _renorm(self.result.recipe, self.inputs.models[0])

    def naive(self, shares: Sequence[float], renorm: str) -> nn.Module:
        """Average the parents as they stand, and renormalise."""
        average = naive_average(self.result.unmatched, shares, self.result.groups)
        renormalise(average, renorm, self.calibration)
        return average


def run(request: Request, work: Work) -> FusionReport | PathReport:
    """Fuse, evaluate, and write what was asked for; nothing is written unless all of it succeeded."""
    shares = _check(request)
    device = resolve_device(request.options.device)
    work.step("reading networks and data")
    inputs = read_inputs(request.parents, request.fusion.arch, request.data, device)
    check_architectures(inputs)
    architecture, template = read_template(inputs, request.fusion.width, request.fusion.child_arch)
    calibration = _calibration(request.recipe, inputs)
    result = fuse(
        inputs.models,
        request.recipe,
        calibration,
        example=inputs.data.example(device=device),
        template=template,
        allow_fixed=request.fusion.allow_fixed,
        on_step=lambda step: work.step(STEPS.get(step, step)),
    )
    fused = _Fused(inputs, result, calibration, inputs.test_loader(request.recipe.batch_size))

    started = time.perf_counter()
    parents, ensemble = evaluate_with_ensemble(inputs.models, work.track(fused.test, "evaluating the parents"))
    children = [
        fused.naive(shares, "none"),
        fused.naive(shares, _best_renorm(fused)),
        result.child,
    ]
    naive, naive_renorm, child = evaluate_together(children, work.track(fused.test, "evaluating the child"))
    paths = None
    if request.points is not None:
        paths = _paths(fused, (parents[0], parents[1]), path_alphas(request.points), work)
    seconds = Seconds(**result.seconds, evaluate=time.perf_counter() - started)

    parent_rows = [
        NetworkScores.at(checkpoint.path, checkpoint.digest, scores)
        for checkpoint, scores in zip(inputs.checkpoints, parents, strict=True)
    ]
    child_row = NetworkScores.at(request.out, state_digest(result.child.state_dict()), child)
    naive_rows = (ScoreValues.of(naive), ScoreValues.of(naive_renorm))
    report = FusionReport(
        parents=parent_rows,
        ensemble=ScoreValues.of(ensemble),
        naive=naive_rows[0],
        naive_renorm=naive_rows[1],
        child=child_row,
        verdict=verdict(parent_rows, ScoreValues.of(ensemble), naive_rows, child_row),
        groups=GroupsSummary(
            count=result.groups.count,
            free_channels=result.groups.free_channels,
            proof_error=result.groups.proof_error,
            fixed=result.groups.fixed,
        ),
        seconds=seconds,
        recipe=result.recipe.model_dump(mode="json"),
        architecture=architecture or inputs.architectures[result.like],
        data=inputs.data_name,
        preprocessing=inputs.data.preprocessing.model_dump(mode="json"),
        images=child.count,
        environment=describe_environment(device),
        command=request.command,
    )
    if paths is not None:
        path, naive_path = paths
        report = PathReport(
            **report.model_dump(),
            path=[PathRow.of(point) for point in path],
            naive_path=[PathRow.of(point) for point in naive_path],
            barrier=Barrier.of(path, naive_path),
        )
    _write(request, report, fused, child)
    return report


def _check(request: Request) -> tuple[float, ...]:
    """Refuse what can be refused before anything is read; return the parents' shares."""
    if len(request.parents) < 2:
        raise RecipeError("a fusion needs at least two parents")
    shares = request.recipe.shares(len(request.parents))
    if request.points is not None:
        if len(request.parents) != 2:
            raise RecipeError(f"a path runs between two parents, not {len(request.parents)}")
        path_alphas(request.points)
    if request.fusion.plot is not None:
        plot_kind(request.fusion.plot)
    check_weights_name(request.out)
    check_outputs(
        {"--out": request.out, "--report": request.fusion.report, "--plot": request.fusion.plot},
        request.parents,
    )
    return shares


def _calibration(recipe: Recipe, inputs: Inputs) -> Loader | None:
    """Draw the calibration images; none where nothing in the recipe looks at them."""
    needed = recipe.criterion != "weights" or _renorm(recipe, inputs.models[0]) != "none"
    if not needed and recipe.calibration < 2:
        return None
    return calibration_loader(
        inputs.data, recipe.calibration, batch_size=recipe.batch_size, device=inputs.device, seed=recipe.seed
    )


def _renorm(recipe: Recipe, model: nn.Module) -> str:
    if recipe.renorm != "auto":
        return recipe.renorm
    return "reset" if has_batch_norm(model) else "none"


def _best_renorm(fused: _Fused) -> str:
    """How the naive average is renormalised for comparison, whatever the recipe does to the child."""
    possible = fused.calibration is not None and has_batch_norm(fused.inputs.models[0])
    return "reset" if possible else "none"


def _paths(
    fused: _Fused, ends: tuple[Scores, Scores], alphas: Sequence[float], work: Work
) -> tuple[list[PathPoint], list[PathPoint]]:
    """Evaluate the path and the naive path, which differ by the couplings alone."""
    work.step("evaluating the path", total=2 * (len(alphas) - 2))

    def advance(_: float) -> None:
        work.advance()

    matched = evaluate_path(ends, lambda alpha: fused.result.at((1.0 - alpha, alpha)), fused.test, alphas, advance)
    naive = evaluate_path(
        ends, lambda alpha: fused.naive((1.0 - alpha, alpha), fused.renorm), fused.test, alphas, advance
    )
    return matched, naive


def _write(request: Request, report: FusionReport | PathReport, fused: _Fused, child: Scores) -> None:
    """Write plot, report and child; each takes its place only when all of them are complete."""
    with ExitStack() as complete:
        if request.fusion.plot is not None and isinstance(report, PathReport):
            draw_path(report, complete.enter_context(replacing(request.fusion.plot)), plot_kind(request.fusion.plot))
        if request.fusion.report is not None:
            text = report.model_dump_json(indent=2) + "\n"
            complete.enter_context(replacing(request.fusion.report)).write_text(text, encoding="utf-8")
        if request.out is not None:
            write_checkpoint(request.out, fused.result.child.state_dict(), _card(report, fused, child))


def _card(report: FusionReport, fused: _Fused, child: Scores) -> Card:
    inputs, recipe = fused.inputs, fused.result.recipe
    return Card(
        architecture=report.architecture,
        data=report.data,
        preprocessing=inputs.data.preprocessing,
        recipe=report.recipe,
        seeds={"fuse": recipe.seed},
        parents=tuple(Parent(path=str(parent.path), digest=parent.digest) for parent in inputs.checkpoints),
        metrics={**ScoreValues.of(child).model_dump(), "images": child.count},
    )
