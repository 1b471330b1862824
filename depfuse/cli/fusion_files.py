"""Write what a fusion made: child, trained parent, report, plot and strip."""

from __future__ import annotations

from contextlib import ExitStack

from depfuse.cli.fused import Fused
from depfuse.cli.inputs import Inputs
from depfuse.cli.request import Request
from depfuse.fusion.agreement import AgreementComparison
from depfuse.fusion.comparison import Comparison
from depfuse.fusion.pretrained import save_pretrained
from depfuse.fusion.saving import fusion_card
from depfuse.io.atomic_files import replacing
from depfuse.io.cards import Card, Parent
from depfuse.io.checkpoint import write_checkpoint
from depfuse.io.output_files import is_folder, is_pickled
from depfuse.io.same_layout import Layout, layout_of, write_content
from depfuse.models import with_classes
from depfuse.models.transformers_networks import names_in_files
from depfuse.report import FusionReport, PathReport, ScoreValues
from depfuse.report.plot_kind import plot_kind
from depfuse.report.tables import short_names


def layout_of_child(request: Request, inputs: Inputs) -> Layout | None:
    """Read the layout of the first parent's file where the child is to have it."""
    if request.out is None or not is_pickled(request.out):
        return None
    keys = request.fusion.key
    return layout_of(
        request.parents[0], keys[0] if keys else None, inputs.models[0].state_dict(), names_in_files(inputs.models[0])
    )


def write_files(
    request: Request,
    report: FusionReport | PathReport,
    fused: Fused,
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


def _card_of_child(report: FusionReport, fused: Fused, images: int) -> Card:
    return _card(report, fused, report.architecture, report.child, images, widened=report.widened)


def _card_of_parent(report: FusionReport, fused: Fused, number: int, images: int) -> Card:
    """Of the parent that was trained as long as the child, with the same teacher and for the same labels."""
    inputs = fused.inputs
    own, architecture = inputs.checkpoints[number].card, inputs.architectures[number]
    if inputs.labels is not None:
        architecture = with_classes(architecture, len(inputs.labels.joint))
    assert report.trained_parent is not None
    widened = own is not None and own.widened
    return _card(report, fused, architecture, report.trained_parent, images, widened=widened)


def _card(
    report: FusionReport, fused: Fused, architecture: str, scores: ScoreValues, images: int, *, widened: bool
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
