"""Tables as Rich renderables; nothing is printed here."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import get_args

from rich.table import Table

from depfuse.report.schema import FusionReport, NetworkScores, PathReport, ScoreValues, SharesSummary
from depfuse.study.trials import Judged, State, TrialRecord, best_first
from depfuse.tasks.scores import ACCURACY, AGREEMENT, CALIBRATION, has_loss, measure_named
from depfuse.text import decimal, short_paths


def fusion_table(report: FusionReport) -> Table:
    """Tabulate parents, their ensemble, the plain averages and the child."""
    return scores_table(fusion_rows(report), "child", short_names(report.parents))


def fusion_rows(report: FusionReport) -> list[tuple[str, ScoreValues]]:
    """List every network of a fusion with its scores: parents, their ensemble, the plain averages, the child."""
    rows: list[tuple[str, ScoreValues]] = [
        (f"parent {label}", parent) for label, parent in zip(short_names(report.parents), report.parents, strict=True)
    ]
    rows += [
        (f"parent {label}, head refitted (no file)", scores)
        for label, scores in zip(short_names(report.parents), report.heads, strict=False)
    ]
    if report.trained_parent is not None:
        path = report.trained_parent.path
        rows.append((f"parent {'' if path is None else Path(path).name}, trained as long", report.trained_parent))
    rows.append((ensemble_name(report.child), report.ensemble))
    if report.teacher is not None:
        rows.append(("ensemble that taught it (no file)", report.teacher))
    rows += [
        ("naive average", report.naive),
        ("naive average, renormalised", report.naive_renorm),
        ("child", report.child),
    ]
    return rows


def ensemble_name(scores: ScoreValues) -> str:
    """Name the ensemble by what of its members is averaged: the logits of classes."""
    return "logit ensemble" if scores.by in (ACCURACY, AGREEMENT) else "ensemble"


def family_table(report: FusionReport) -> Table:
    """Tabulate the candidates of goal best, the child first."""
    shown = _columns(report.child)
    table = plain_table("candidate", "disagreement", *score_names(report.child)[shown], "seconds")
    for row in report.ranked_family:
        cells = (_nats(row.disagreement), *_cells(row)[shown], f"{row.seconds:.1f}")
        table.add_row(row.name, *cells, style="bold" if row.chosen else None)
    return table


def shares_table(shares: SharesSummary, names: Sequence[str]) -> Table:
    """Tabulate each parent's share in every part of the child."""
    table = plain_table("part", *(f"share of {name}" for name in names))
    for part, of_part in shares.parts.items():
        table.add_row(part, *(f"{share:.2f}" for share in of_part))
    return table


def search_table(trials: Sequence[TrialRecord], judged: Judged) -> Table:
    """Tabulate trials of a search in their order, with the parameters that were drawn for each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial")
    for title in (f"held-out {judged.measure.name}", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("drawn", overflow="fold")
    for trial in trials:
        table.add_row(str(trial.trial), judged.text(trial.quality), f"{trial.seconds or 0.0:.2f}", drawn_text(trial))
    return table


def search_sentence(trials: Sequence[TrialRecord], judged: Judged) -> str:
    """Say which trial is the best, of how many, and how far from the recipe that the search began with."""
    ranked = best_first(trials, labelled=judged.labelled)
    best = ranked[0]
    counts = {state: sum(trial.state == state for trial in trials) for state in get_args(State)}
    first = next((trial for trial in ranked if trial.trial == 0), None)
    if first is None:
        began = ""
    elif first is best:
        began = " (it is the first trial, with defaults)"
    else:
        began = f" (the first trial, with defaults, has {judged.text(first.quality)})"
    return (
        f"trial {best.trial} is the best of {len(trials)} trials, {counts['complete']} complete, {counts['pruned']} "
        f"pruned, {counts['refused']} refused: held-out {judged.measure.name} {judged.text(best.quality)}{began}"
    )


def drawn_text(trial: TrialRecord) -> str:
    """Write the parameters that were drawn for a trial: `distance cosine, mixture 0.31`."""
    return ", ".join(f"{name} {_short(value)}" for name, value in trial.parameters.items())


def scores_table(
    rows: Iterable[tuple[str, ScoreValues]], emphasised: str | None = None, members: Sequence[str] = ()
) -> Table:
    """Tabulate networks with their scores and losses; see `label_heads` and `agreement_columns`."""
    listed = list(rows)
    labelled = all(scores.labelled for _, scores in listed)
    networks = [scores for _, scores in listed]
    heads, rows_of_cells = (
        (label_heads(networks[0]), [label_cells(scores) for scores in networks])
        if labelled
        else agreement_columns(members, networks)
    )
    table = plain_table("network", *heads)
    for (name, _), cells in zip(listed, rows_of_cells, strict=True):
        table.add_row(name, *cells, style="bold" if name == emphasised else None)
    return table


def score_names(scores: ScoreValues) -> tuple[str, str]:
    """Return what the value and the nats of scores are."""
    return (scores.by.name, "loss" if scores.labelled else "ensemble loss")


def label_heads(scores: ScoreValues) -> list[str]:
    """List the columns of `label_cells`: score, loss, calibration error of classes or scores by further measures."""
    loss = ["loss"] if has_loss(scores.by) else []
    return [scores.by.name, *loss, *(scores.further or (["calibration error"] if scores.by == ACCURACY else []))]


def label_cells(scores: ScoreValues) -> list[str]:
    """Write score and loss, and what else was measured; the calibration error in per cent."""
    further = [measure_named(name).text(value) for name, value in scores.further.items()]
    rest = further or ([CALIBRATION.text(scores.calibration_error)] if scores.by == ACCURACY else [])
    return [scores.by.text(scores.value), *([_nats(scores.loss)] if has_loss(scores.by) else []), *rest]


def agreement_columns(members: Sequence[str], networks: Sequence[ScoreValues]) -> tuple[list[str], list[list[str]]]:
    """Tabulate agreement with the ensemble and each member, and confidence; the loss where no network has confidence.

    Returns
    -------
    heads, rows
        Titles of the columns, and the cells of each network; of one network alone there is no agreement.
    """
    losses = all(scores.confidence is None for scores in networks) and any(
        scores.ensemble_loss is not None for scores in networks
    )
    measure = networks[0].by
    agrees = "agrees with the ensemble" if measure == AGREEMENT else f"{measure.name} under the ensemble"
    several = [agrees, *(f"with {name}" for name in members)] if len(members) > 1 else []
    rows = []
    for scores in networks:
        last = _nats(scores.ensemble_loss) if losses else AGREEMENT.text(scores.confidence)
        values = [scores.value, *(scores.agreement_with or [math.nan] * len(members))] if several else []
        rows.append([*map(scores.by.text, values), last])
    return [*several, "ensemble loss" if losses else "confidence"], rows


def path_table(report: PathReport) -> Table:
    """Tabulate the networks between the two parents, by each method, beside the plain averages at the same shares."""
    curves = {method.name: method.path for method in report.methods} or {"": report.path}
    curves["naive"] = report.naive_path
    shown = _columns(report.child)
    heads = [f"{name} {what}".strip() for name in curves for what in score_names(report.child)[shown]]
    table = plain_table("share of parent 2", *heads)
    for rows in zip(*curves.values(), strict=True):
        table.add_row(f"{rows[0].alpha:.2f}", *(cell for row in rows for cell in _cells(row)[shown]))
    return table


def _columns(scores: ScoreValues) -> slice:
    """Select the score, and the loss where there is one."""
    return slice(0, 2 if has_loss(scores.by) else 1)


def short_names(networks: Sequence[NetworkScores]) -> list[str]:
    """Name networks by their files, without the folders that do not tell them apart."""
    return short_paths([network.path or "in memory" for network in networks])


def plain_table(first: str, *others: str, left: Collection[str] = ()) -> Table:
    """Make a table without lines: text in the first column and those in `left`, numbers in the others."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for other in others:
        text = other in left
        table.add_column(other, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _nats(loss: float | None) -> str:
    return "not finite" if loss is None else decimal(loss)


def _cells(scores: ScoreValues) -> tuple[str, str]:
    return scores.by.text(scores.value), _nats(scores.nats)
