"""The line at the top of the page: what is best in the whole set."""

from __future__ import annotations

import math
from collections.abc import Sequence

from depfuse.report.matching import MatchReport
from depfuse.report.page.numbers import decimal
from depfuse.report.page.runs import Run
from depfuse.report.page.scores import single_networks
from depfuse.report.page.study import study_sentence
from depfuse.report.schema import EvaluationReport, FusionReport, ScoreValues
from depfuse.report.study import StudyReport
from depfuse.report.tables import short_names
from depfuse.tasks.scores import ACCURACY, AGREEMENT, Measure
from depfuse.text import counted


def best_sentences(runs: Sequence[Run]) -> list[str]:
    """Write one sentence per data set that fusions were evaluated on, and one per study.

    Without fusions, one sentence summarises all runs that are not studies.
    """
    fusions = [(run.name, run.report) for run in runs if isinstance(run.report, FusionReport)]
    by_data: dict[tuple[str, Measure], list[tuple[str, FusionReport]]] = {}
    for name, report in fusions:
        if report.labelled:
            by_data.setdefault((report.data, report.child.by), []).append((name, report))
    others = [run for run in runs if not isinstance(run.report, StudyReport)]
    sentences = [_of_fusions(data, rows) for (data, _), rows in by_data.items()]
    sentences += [
        f"On {report.data}, without labels, the child {_agrees(report)} ({name})."
        for name, report in fusions
        if not report.labelled
    ]
    if others and not sentences:
        sentences = [_of_the_rest(others)]
    return sentences + [
        f"Search on {run.report.data} ({run.name}): {study_sentence(run.report)}."
        for run in runs
        if isinstance(run.report, StudyReport)
    ]


def caution(runs: Sequence[Run]) -> str | None:
    """Say how small a difference the figures of several fusions can show; return None for a single fusion."""
    reports = [run.report for run in runs if isinstance(run.report, FusionReport) and run.report.child.by == ACCURACY]
    if len(reports) < 2:
        return None
    images = min(report.images for report in reports)
    error = 50 / math.sqrt(images) if images > 0 else math.inf
    return (
        f"All figures are of test images, of which there are {images:,}"
        f"{'' if all(report.images == images for report in reports) else ' at least'}: one standard error is up to"
        f" {decimal(error, 2)} points. Choose between recipes on held-out training images, not on these figures."
    )


def _of_fusions(data: str, fusions: Sequence[tuple[str, FusionReport]]) -> str:
    singles = [(name, *network) for name, report in fusions for network in single_networks(report)]
    name, what, scores = max(singles, key=lambda single: _value(single[2]))
    sentence = f"Best on {data}: {what}, {scored(scores)} ({name})."
    where, report = max(fusions, key=lambda fusion: _value(fusion[1].ensemble))
    if _value(report.ensemble) <= _value(scores):
        return sentence
    return (
        f"{sentence} The ensemble of {_all(report)} reaches {report.ensemble.by.text(report.ensemble.value)} ({where}),"
        f" where running {len(report.parents)} networks is affordable."
    )


def _all(report: FusionReport) -> str:
    names = short_names(report.parents)
    return " and ".join(names) if len(names) < 3 else f"{len(names)} parents"


def _of_the_rest(runs: Sequence[Run]) -> str:
    networks = [
        (run.name, network, run.report.data)
        for run in runs
        if isinstance(run.report, EvaluationReport)
        for network in run.report.networks
        if network.labelled
    ]
    if networks:
        name, network, data = max(networks, key=lambda row: _value(row[1]))
        return f"Best on {data}: {short_names([network])[0]}, {scored(network)} ({name})."
    matchings = sum(len(run.report.matchings) for run in runs if isinstance(run.report, MatchReport))
    return f"{counted(matchings, 'matching')}, and no fusion whose accuracy could be compared."


def scored(scores: ScoreValues) -> str:
    """Write a score, with its measure where that is not accuracy."""
    return f"{'' if scores.by == ACCURACY else f'{scores.by.name} '}{scores.by.text(scores.value)}"


def _agrees(report: FusionReport) -> str:
    text = report.child.by.text(report.child.value)
    if report.child.by == AGREEMENT:
        return f"agrees with the ensemble on {text}"
    return f"has {report.child.by.name} {text} under the ensemble's outputs"


def _value(scores: ScoreValues) -> float:
    return scores.value if math.isfinite(scores.value) else -math.inf
