"""`depfuse match`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.help import FURTHER, Further
from depfuse.cli.importing import importing
from depfuse.cli.named import read_named, same_architecture
from depfuse.cli.options import (
    ArchitectureOption,
    Checkpoints,
    DataOptions,
    KeyOption,
    RecipeOptions,
    ReportOption,
    RunOptions,
    TrustOption,
)
from depfuse.cli.spread import spread
from depfuse.errors import RecipeError
from depfuse.io.atomic_files import replacing
from depfuse.io.output_files import check_outputs
from depfuse.report.matching import MatchReport, ParentMatch, depths_table, groups_table, match_sentence
from depfuse.report.plot_kind import plot_kind
from depfuse.text import readable


@spread
def match(
    context: typer.Context,
    parents: Checkpoints,
    data: DataOptions,
    settings: Annotated[RecipeOptions, Further("distil")],
    options: RunOptions,
    arch: ArchitectureOption = None,
    key: KeyOption = None,
    trust: TrustOption = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME", help="Show only this group; may be given again. Default: all groups."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the matching as a block matrix, costs, and correlations by depth (.png, .pdf or .svg).",
        ),
    ] = None,
    report: ReportOption = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes",
            metavar="LABELS",
            help="Which labels a parent knows, as for `depfuse fuse`.",
            rich_help_panel=FURTHER,
        ),
    ] = None,
) -> None:
    """Match parents, and show what the matching does."""
    recipe = settings.recipe()
    if len(parents) < 2:
        raise RecipeError("a matching needs at least two parents")
    architecture = same_architecture(parents, read_named(parents, arch, data, classes, trust, key).architectures)
    if recipe.align.solver.jointly:
        solver = recipe.align.solver.name
        raise RecipeError(f"solver {solver} matches no parent to another: choose emd to see a matching")
    recipe.shares(len(parents))
    recipe.align.check_numbers(len(parents))
    kind = None if plot is None else plot_kind(plot)
    check_outputs({"--report": report, "--plot": plot}, [*parents, *data.files, *settings.files])
    # What follows needs torch, for which no mistake above has to wait.
    with importing():
        from depfuse.align.description import describe_matching
        from depfuse.cli.inputs import read_inputs, read_template
        from depfuse.data import calibration_loader
        from depfuse.distributed.device import resolve_device
        from depfuse.fusion.pipeline import match as match_channels
        from depfuse.report import describe_environment
        from depfuse.report.matching_plot import draw_matchings

    device = resolve_device(options.device)
    screen = Screen(options.quiet)
    with screen.working() as work:
        work.step("reading networks and data")
        inputs = read_inputs(
            parents, arch, data, device, classes, fused=True, trust=trust, key=key, task=recipe.task.name
        )
        calibration = calibration_loader(
            inputs.data,
            recipe.calibration.images,
            batch_size=recipe.calibration.batch_size,
            device=device,
            seed=recipe.seed,
        )
        result = match_channels(
            inputs.parents(read_template(inputs, None, None)[1]),
            inputs.recipe(recipe),
            calibration,
        )
        work.step("comparing matched channels")
        recipe = result.recipe
        matchings = describe_matching(result.models, result.groups, result.couplings, recipe.align, calibration)
    known = [found.name for found in next(iter(matchings.values())).groups]
    for name in group or ():
        if name not in known:
            raise RecipeError(f"--group {name!r} is no free group: `depfuse groups` lists them, such as {known[0]}")
    names = [readable(checkpoint.path.name) for checkpoint in inputs.checkpoints]
    labels = names if len(set(names)) == len(names) else [str(checkpoint.path) for checkpoint in inputs.checkpoints]
    found = [
        ParentMatch.of(
            parent, str(inputs.checkpoints[parent].path), inputs.checkpoints[parent].digest, matching, group or None
        )
        for parent, matching in matchings.items()
    ]
    document = MatchReport(
        kept=recipe.align.kept,
        kept_path=str(inputs.checkpoints[recipe.align.kept].path),
        matchings=found,
        converged=not result.not_converged,
        not_converged=list(result.not_converged),
        seconds={step: result.seconds[step] for step in ("groups", "align", "choose")},
        recipe=recipe.model_dump(mode="json"),
        architecture=architecture,
        data=inputs.data_name,
        preprocessing=inputs.data.preprocessing.model_dump(mode="json"),
        environment=describe_environment(device),
        command=context.obj,
    )
    with ExitStack() as complete:
        if plot is not None and kind is not None:
            drawn = {labels[parent]: matching for parent, matching in matchings.items()}
            kept = labels[recipe.align.kept]
            draw_matchings(drawn, kept, group or None, complete.enter_context(replacing(plot)), kind)
        if report is not None:
            text = document.model_dump_json(indent=2) + "\n"
            complete.enter_context(replacing(report)).write_text(text, encoding="utf-8")
    for row in found:
        if len(found) > 1:
            screen.say(f"\n{labels[row.parent]}:")
        screen.show(groups_table(row))
        screen.say("")
        screen.show(depths_table(row))
        screen.say(f"\n{match_sentence(row, labels[row.parent], labels[recipe.align.kept])}")
