"""Sentences of a report: where the child is and how it is loaded, and how high the barrier is."""

from __future__ import annotations

from pathlib import Path

from depfuse.io.output_files import is_pickled
from depfuse.report.schema import FusionReport, PathReport
from depfuse.report.tables import fusion_rows
from depfuse.tasks.scores import Measure, has_loss, in_nats
from depfuse.text import decimal


def barrier_sentence(report: PathReport) -> str:
    """Say how high the barrier between two parents is, matched and naively."""
    barrier = report.barrier
    measure = report.child.by
    what = f"of {measure.name}{'' if report.labelled else ' with their ensemble'}"
    if report.methods:
        heights = [
            f"{_height(measure, method.barrier_loss, method.barrier_error)} {what} by {method.name}"
            for method in report.methods
        ]
        naive = f"{_height(measure, barrier.naive_loss, barrier.naive_error)} {what}"
        return f"The barrier between the parents is {', '.join(heights)}; without matching it is {naive}."
    matched, naive = (
        f"{_height(measure, loss, error)} {what}"
        for loss, error in ((barrier.loss, barrier.error), (barrier.naive_loss, barrier.naive_error))
    )
    rest = "" if report.path_refitted else " Networks on the path are not refitted, as the child is."
    return f"The barrier between the parents is {matched}; without matching it is {naive}.{rest}"


def decisions(report: FusionReport) -> list[str]:
    """Say what the networks decided and not the recipe: refit, mirrored images, teachers, the shares that are left."""
    reasons = (report.refit_reason, report.mirroring, report.teaching)
    said = [f"{text[:1].upper()}{text[1:]}." for text in reasons if text is not None]
    shares = report.shares
    if shares is not None and shares.effective is not None:
        # A parent whose kernels keep the part r of their norm counts as before with 1 / r of its share.
        parts = [given**2 / left if left else 0.0 for given, left in zip(shares.network, shares.effective, strict=True)]
        given, left, instead = (
            ",".join(f"{share / sum(own):.2f}" for share in own) for own in (shares.network, shares.effective, parts)
        )
        said.append(
            "Soft couplings average channels, and those that differ cancel: of the shares"
            f" {given} the child's kernels have {left}; `merge.weights={instead}` would leave {given}."
        )
    return said


def sentence_of_errors(report: FusionReport) -> str:
    """Say how large the standard errors of the scores are over the images; empty where none is known."""
    rows = [scores for _, scores in fusion_rows(report)] + list(report.family)
    errors = [scores.standard_error for scores in rows if scores.standard_error is not None]
    if not errors:
        return ""
    measure = report.child.by
    return (
        f"Scores are of {report.images:,} test images, with standard errors of up to"
        f" {measure.amount(measure.number(max(errors)))}."
    )


def loading_lines(report: FusionReport) -> list[str]:
    """Say where the child's file is and how to load it; nothing where it has no file."""
    if report.child.path is None:
        return []
    path = report.child.path
    lines = [f"The child is in {path}, a {report.architecture}."]
    if is_pickled(Path(path)):
        return [f"{lines[0][:-1]}, in the layout of {report.parents[0].path}."]
    if not path.endswith(".safetensors"):  # a folder
        return [*lines, *_from_folder(path, report.architecture)]
    if report.widened:
        lines[0] += " Channels stand side by side in it, so that it is wider than its class: depfuse builds it."
        return [*lines, "    import depfuse", f"    model = depfuse.load({path!r})"]
    lines[0] += " Into a network of that architecture of your own:"
    return [*lines, "    from safetensors.torch import load_file", f"    model.load_state_dict(load_file({path!r}))"]


def _from_folder(path: str, architecture: str) -> list[str]:
    """Write how a folder is loaded, by the library that knows it."""
    source, _, name = architecture.partition("(")[0].rpartition(":")
    if source == "transformers":
        return [f"    from transformers import {name}", f"    model = {name}.from_pretrained({path!r})"]
    if source == "timm":
        return ["    import timm", f"    model = timm.create_model({f'local-dir:{path}'!r}, pretrained=True)"]
    return ["    import depfuse", f"    model = depfuse.load({path!r})"]


def _height(measure: Measure, loss: float | None, error: float) -> str:
    """Write the height of a barrier in the loss, where there is one, and in the score."""
    height = measure.amount(measure.number(error))
    if not has_loss(measure):
        return height
    unit = " nats" if in_nats(measure) else " of loss"
    return f"{'not finite' if loss is None else f'{decimal(loss)}{unit}'} and {height}"
