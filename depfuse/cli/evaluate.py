"""`depfuse eval`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.importing import importing
from depfuse.cli.named import read_named
from depfuse.cli.options import (
    ArchitectureOption,
    Checkpoints,
    DataOptions,
    KeyOption,
    ReportOption,
    RunOptions,
    TaskOption,
    TrustOption,
)
from depfuse.cli.spread import spread
from depfuse.evaluate import Agreement, Scores
from depfuse.io.atomic_files import replacing
from depfuse.io.output_files import check_outputs
from depfuse.recipe.presets import as_recipe
from depfuse.report import EvaluationReport, NetworkScores
from depfuse.report.tables import scores_table, short_names
from depfuse.text import counted


@spread
def evaluate(
    context: typer.Context,
    checkpoints: Checkpoints,
    data: DataOptions,
    options: RunOptions,
    arch: ArchitectureOption = None,
    key: KeyOption = None,
    trust: TrustOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")] = 250,
    task: TaskOption = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes",
            metavar="LABELS",
            help="What the outputs of a network stand for, once per network in order: 0-9, or cat,dog."
            " Default: what the cards say, or the classes of the data in their order.",
        ),
    ] = None,
    report: ReportOption = None,
) -> None:
    """Evaluate networks in one pass over the test images; without labels, see how well they agree."""
    screen = Screen(options.quiet)
    check_outputs({"--report": report}, [*checkpoints, *data.files])
    read_named(checkpoints, arch, data, classes, trust, key)
    # What follows needs torch, for which no mistake above has to wait.
    with importing():
        from depfuse.cli.inputs import read_inputs, say_what_is_assumed
        from depfuse.distributed.device import resolve_device
        from depfuse.evaluate import evaluate_agreement, evaluate_together
        from depfuse.fusion.meaning import Known, Meaning
        from depfuse.report import describe_environment
        from depfuse.tasks.selection import selected

    device = resolve_device(options.device)
    with screen.working() as work:
        work.step("reading networks and data")
        named = as_recipe({} if task is None else {"task": task})
        inputs = read_inputs(
            checkpoints, arch, data, device, classes, trust=trust, key=key, judged=True, task=named.task.name
        )
        loader, example = inputs.test_loader(batch_size), inputs.data.example(device=device)
        known = Known(inputs.labels, scored=loader)
        meaning = Meaning.of(inputs.models, inputs.recipe(named), loader, example, None, known)
        say_what_is_assumed(meaning)
        models = selected(inputs.models, meaning.scores)
        images = work.track(loader, "evaluating")
        started = time.perf_counter()
        if inputs.data.labelled:
            scores: Sequence[Scores | Agreement] = evaluate_together(models, images, meaning.scored)
        else:
            scores, _, _ = evaluate_agreement(models, [], images, sets=inputs.labels, task=meaning.scored)
        seconds = time.perf_counter() - started
    networks = [
        NetworkScores.at(checkpoint.path, checkpoint.digest, found)
        for checkpoint, found in zip(inputs.checkpoints, scores, strict=True)
    ]
    if report is not None:
        document = EvaluationReport(
            networks=networks,
            data=inputs.data_name,
            preprocessing=inputs.data.preprocessing.model_dump(mode="json"),
            images=scores[0].count,
            seconds={"evaluate": seconds},
            environment=describe_environment(device),
            command=context.obj,
        )
        with replacing(report) as temporary:
            temporary.write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")
    names = short_names(networks)
    screen.show(scores_table(zip(names, networks, strict=True), members=names))
    if not inputs.data.labelled:
        screen.say(
            f"\nWithout labels no accuracy is known; these are the outputs for {counted(scores[0].count, 'image')}."
        )
