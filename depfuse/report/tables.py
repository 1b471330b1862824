"""Tables as Rich renderables; nothing is printed here."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import get_args

from rich.table import Table

from depfuse.report.schema import FusionReport, NetworkScores, PathReport, PathRow, ScoreValues, SharesSummary
from depfuse.study.trials import State, TrialRecord, best_first


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
    rows.append(("logit ensemble", report.ensemble))
    if report.teacher is not None:
        rows.append(("ensemble that taught it (no file)", report.teacher))
    rows += [
        ("naive average", report.naive),
        ("naive average, renormalised", report.naive_renorm),
        ("child", report.child),
    ]
    return rows


def family_table(report: FusionReport) -> Table:
    """Tabulate the candidates of goal best, the child first."""
    table = plain_table("candidate", "disagreement", *score_names(report.child), "seconds")
    for row in report.ranked_family:
        cells = (_nats(row.disagreement), *_cells(row)[:2], f"{row.seconds:.1f}")
        table.add_row(row.name, *cells, style="bold" if row.chosen else None)
    return table


def shares_table(shares: SharesSummary, names: Sequence[str]) -> Table:
    """Tabulate each parent's share in every part of the child."""
    table = plain_table("part", *(f"share of {name}" for name in names))
    for part, of_part in shares.parts.items():
        table.add_row(part, *(f"{share:.2f}" for share in of_part))
    return table


def search_table(trials: Sequence[TrialRecord], *, labelled: bool) -> Table:
    """Tabulate trials of a search in their order, with the parameters that were drawn for each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial")
    for title in (_measure(labelled), "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("drawn", overflow="fold")
    for trial in trials:
        table.add_row(str(trial.trial), _quality(trial, labelled), f"{trial.seconds or 0.0:.2f}", drawn_text(trial))
    return table


def search_sentence(trials: Sequence[TrialRecord], *, labelled: bool) -> str:
    """Say which trial is the best, of how many, and how far from the recipe that the search began with."""
    ranked = best_first(trials, labelled=labelled)
    best = ranked[0]
    counts = {state: sum(trial.state == state for trial in trials) for state in get_args(State)}
    first = next((trial for trial in ranked if trial.trial == 0), None)
    if first is None:
        began = ""
    elif first is best:
        began = " (it is the first trial, with defaults)"
    else:
        began = f" (the first trial, with defaults, has {_quality(first, labelled)})"
    return (
        f"trial {best.trial} is the best of {len(trials)} trials, {counts['complete']} complete, {counts['pruned']} "
        f"pruned, {counts['refused']} refused: {_measure(labelled)} {_quality(best, labelled)}{began}"
    )


def drawn_text(trial: TrialRecord) -> str:
    """Write the parameters that were drawn for a trial: `distance cosine, mixture 0.31`."""
    return ", ".join(f"{name} {_short(value)}" for name, value in trial.parameters.items())


def scores_table(
    rows: Iterable[tuple[str, ScoreValues]], emphasised: str | None = None, members: Sequence[str] = ()
) -> Table:
    """Tabulate networks with their scores: accuracy and calibration error in per cent, loss in nats.

    Without labels: agreement with the ensemble and each of its members, and mean confidence, in per cent.
    """
    listed = list(rows)
    labelled = all(scores.labelled for _, scores in listed)
    table = plain_table("network", *(_LABELLED if labelled else agreement_heads(members)))
    for name, scores in listed:
        cells = _cells(scores) if labelled else agreement_cells(scores, len(members))
        table.add_row(name, *cells, style="bold" if name == emphasised else None)
    return table


_LABELLED = ("accuracy", "loss", "calibration error")


def score_names(scores: ScoreValues) -> tuple[str, str]:
    """Return what the share and the nats of scores are."""
    return ("accuracy", "loss") if scores.labelled else ("agreement", "ensemble loss")


def agreement_heads(members: Sequence[str]) -> list[str]:
    """List the columns of `agreement_cells`; of one network alone there is no agreement."""
    several = ["agrees with the ensemble", *(f"with {name}" for name in members)]
    return [*(several if len(members) > 1 else []), "confidence"]


def agreement_cells(scores: ScoreValues, members: int) -> list[str]:
    """Write agreement with the ensemble and each member, and confidence."""
    shares = [scores.share, *(scores.agreement_with or [math.nan] * members)] if members > 1 else []
    return [_share(share) for share in (*shares, scores.confidence)]


def _share(share: float | None) -> str:
    return "not finite" if share is None or not math.isfinite(share) else f"{100 * share:.2f} %"


def path_table(report: PathReport) -> Table:
    """Tabulate the networks between the two parents, by each method, beside the plain averages at the same shares."""
    curves = {method.name: method.path for method in report.methods} or {"": report.path}
    curves["naive"] = report.naive_path
    heads = [f"{name} {what}".strip() for name in curves for what in score_names(report.child)]
    table = plain_table("share of parent 2", *heads)
    for rows in zip(*curves.values(), strict=True):
        table.add_row(f"{rows[0].alpha:.2f}", *(cell for row in rows for cell in _cells(row)[:2]))
    return table


def short_names(networks: Sequence[NetworkScores]) -> list[str]:
    """Leave out the folders of files where the names alone differ."""
    paths = [network.path or "in memory" for network in networks]
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else paths


def plain_table(first: str, *others: str, left: Collection[str] = ()) -> Table:
    """Make a table without lines: text in the first column and those in `left`, numbers in the others."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for other in others:
        text = other in left
        table.add_column(other, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


def _measure(labelled: bool) -> str:
    return "held-out accuracy" if labelled else "held-out disagreement"


def _quality(trial: TrialRecord, labelled: bool) -> str:
    return f"{100 * (trial.quality or 0.0):.2f} %" if labelled else _nats(trial.quality)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _nats(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"


def _cells(scores: ScoreValues | PathRow) -> tuple[str, str, str]:
    calibration = "not finite" if scores.calibration_error is None else f"{100 * scores.calibration_error:.2f} %"
    return f"{100 * scores.share:.2f} %", _nats(scores.nats), calibration
