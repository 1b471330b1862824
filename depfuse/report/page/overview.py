"""The tables of all runs: one per kind of report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from depfuse.report.matching import MatchReport, ParentMatch
from depfuse.report.page.markup import Html
from depfuse.report.page.numbers import decimal, gain, nats, per_cent, score
from depfuse.report.page.scores import best_naive, best_parent, changed_settings, settings_text, stems
from depfuse.report.page.tables import Column, sortable_table
from depfuse.report.schema import EvaluationReport, FusionReport, NetworkScores, PathReport
from depfuse.report.study import StudyReport
from depfuse.report.tables import short_names
from depfuse.study.trials import State, TrialRecord, complete_trials
from depfuse.tasks.scores import ACCURACY

R = TypeVar("R")
SETTINGS, WORDS = "settings", "words"  # columns in the style sheet: of settings, and of words that are not broken


@dataclass(frozen=True)
class Entry(Generic[R]):
    """A report in a table: the id of its details, its name, itself."""

    identity: str
    name: str
    report: R


@dataclass(frozen=True)
class _Matched:
    """A row of the table of matchings: a report may hold several."""

    entry: Entry[MatchReport]
    match: ParentMatch

    @property
    def correlation(self) -> tuple[float | None, float | None]:
        return self.match.mean_correlation or (None, None)


@dataclass(frozen=True)
class _Evaluated:
    """A row of the table of evaluations."""

    entry: Entry[EvaluationReport]
    network: NetworkScores


def fusions_table(entries: Sequence[Entry[FusionReport]]) -> Html:
    """Tabulate all fusions, the best child first: by its score, or by agreement where there are no labels."""
    reports = [entry.report for entry in entries]
    columns: list[Column[Entry[FusionReport]]] = [
        Column("Run", lambda entry: entry.name),
        _score("Child", lambda report: report.child.value),
        _score("Best parent", _parent_value),
        Column(
            "Gain", lambda entry: gain(entry.report.child.by, _gain(entry.report)), lambda entry: _gain(entry.report)
        ),
        _score("Ensemble", lambda report: report.ensemble.value if report.labelled else None),
        _score("Naive", lambda report: best_naive(report).value),
        Column("Keep", lambda entry: _keep(entry.report), look=WORDS),
        Column(
            "Recipe", lambda entry: settings_text(changed_settings(entry.report.recipe)) or "default", look=SETTINGS
        ),
        _score("Barrier", _barrier),
        Column("Seconds", lambda entry: decimal(seconds(entry.report), 1), lambda entry: seconds(entry.report)),
        Column("Parents", lambda entry: ", ".join(stems(entry.report.parents))),
    ]
    if any(report.labelled and report.child.by != ACCURACY for report in reports):
        columns.insert(1, Column("Measure", lambda entry: entry.report.child.by.title, look=WORDS))
    if len({report.data for report in reports}) > 1:
        columns.append(Column("Data", lambda entry: entry.report.data))
    if len({report.architecture for report in reports}) > 1:
        columns.append(Column("Architecture", lambda entry: entry.report.architecture))
    return sortable_table("Fusions", columns, entries, lambda entry: entry.identity, "Child")


def matchings_table(entries: Sequence[Entry[MatchReport]]) -> Html:
    """Tabulate all matchings, the one with the highest correlation of channels first."""
    rows = [_Matched(entry, match) for entry in entries for match in entry.report.matchings]
    columns: list[Column[_Matched]] = [
        Column("Run", lambda row: row.entry.name),
        Column("Correlation", lambda row: decimal(row.correlation[1], 3), lambda row: row.correlation[1]),
        Column("Before", lambda row: decimal(row.correlation[0], 3), lambda row: row.correlation[0]),
        Column("Groups", lambda row: str(len(row.match.groups)), lambda row: len(row.match.groups)),
        Column("Channels", lambda row: f"{row.match.channels:,}", lambda row: row.match.channels),
        Column("Moved", lambda row: f"{row.match.moved:,}", lambda row: row.match.moved),
        Column(
            "Recipe", lambda row: settings_text(changed_settings(row.entry.report.recipe)) or "default", look=SETTINGS
        ),
        Column(
            "Seconds",
            lambda row: decimal(sum(row.entry.report.seconds.values()), 1),
            lambda row: sum(row.entry.report.seconds.values()),
        ),
        Column("Matched", lambda row: _stem(row.match.path)),
        Column("To", lambda row: _stem(row.entry.report.kept_path)),
    ]
    return sortable_table("Matchings", columns, rows, lambda row: row.entry.identity, "Correlation")


def evaluations_table(entries: Sequence[Entry[EvaluationReport]]) -> Html:
    """Tabulate all networks that were evaluated, the best first: by accuracy, or by agreement without labels."""
    rows = [_Evaluated(entry, network) for entry in entries for network in entry.report.networks]
    columns: list[Column[_Evaluated]] = [
        Column("Run", lambda row: row.entry.name),
        Column("Network", lambda row: short_names([row.network])[0]),
        Column("Accuracy", lambda row: per_cent(row.network.accuracy), lambda row: row.network.accuracy),
        Column("Score", lambda row: _of_task(row.network), lambda row: row.network.score),
        Column("Agreement", lambda row: per_cent(row.network.agreement), lambda row: row.network.agreement),
        Column("Confidence", lambda row: per_cent(row.network.confidence), lambda row: row.network.confidence),
        Column(
            "Loss", lambda row: nats(row.network.loss) if row.network.labelled else "", lambda row: row.network.loss
        ),
        Column("Data", lambda row: row.entry.report.data),
    ]
    by = "Accuracy" if all(entry.report.labelled for entry in entries) else "Agreement"
    return sortable_table("Evaluations", columns, rows, lambda row: row.entry.identity, by)


def studies_table(entries: Sequence[Entry[StudyReport]]) -> Html:
    """Tabulate all studies, which read labels or do not, the longest first: those of several parents have no order."""
    labelled = all(entry.report.labelled for entry in entries)
    text = per_cent if labelled else nats
    columns: list[Column[Entry[StudyReport]]] = [
        Column("Run", lambda entry: entry.name),
        _quality("Accuracy" if labelled else "Disagreement", text, lambda study: study.best),
        _quality("With defaults", text, _first),
        Column("Best trial", lambda entry: str(entry.report.best.trial), lambda entry: entry.report.best.trial),
        *(_count(state) for state in ("complete", "pruned", "refused")),
        Column("Trials", lambda entry: f"{len(entry.report.trials):,}", lambda entry: len(entry.report.trials)),
        Column(
            "Best recipe",
            lambda entry: settings_text(changed_settings(entry.report.best.recipe or {})) or "default",
            look=SETTINGS,
        ),
        Column("Seconds", lambda entry: decimal(entry.report.best.seconds, 2), lambda entry: entry.report.best.seconds),
        Column("Parents", lambda entry: ", ".join(_stem(path) for path in entry.report.parents)),
        Column("Data", lambda entry: entry.report.data),
    ]
    return sortable_table("Searches", columns, entries, lambda entry: entry.identity, "Trials")


def seconds(report: FusionReport) -> float:
    """Sum the seconds of a fusion, evaluation left out."""
    return float(sum(report.seconds.model_dump(exclude={"evaluate"}).values()))


def _quality(
    head: str, text: Callable[[float], str], chosen: Callable[[StudyReport], TrialRecord | None]
) -> Column[Entry[StudyReport]]:
    def value(entry: Entry[StudyReport]) -> float | None:
        trial = chosen(entry.report)
        return None if trial is None else trial.quality

    return Column(head, lambda entry: "" if (quality := value(entry)) is None else text(quality), value)


def _count(state: State) -> Column[Entry[StudyReport]]:
    def value(entry: Entry[StudyReport]) -> int:
        return sum(trial.state == state for trial in entry.report.trials)

    return Column(state.capitalize(), lambda entry: f"{value(entry):,}", value)


def _first(study: StudyReport) -> TrialRecord | None:
    return next((trial for trial in complete_trials(study.trials) if trial.trial == 0), None)


def _score(head: str, value: Callable[[FusionReport], float | None]) -> Column[Entry[FusionReport]]:
    return Column(
        head, lambda entry: score(entry.report.child.by, value(entry.report)), lambda entry: value(entry.report)
    )


def _of_task(network: NetworkScores) -> str:
    """Write a score other than accuracy with its measure."""
    return "" if network.score is None else f"{network.by.name} {network.by.text(network.score)}"


def _keep(report: FusionReport) -> str:
    """Say what the verdict recommends; nothing for reports that have it in words only."""
    if report.advice is None:
        return ""
    return "none of them" if report.advice.keep is None else report.advice.keep.what


def _parent_value(report: FusionReport) -> float | None:
    parent = best_parent(report)
    return None if parent is None else parent.value


def _gain(report: FusionReport) -> float | None:
    """Score above the best parent; parents agree with an ensemble that they are part of, so there is no gain."""
    parent = _parent_value(report)
    return None if parent is None or not report.labelled else report.child.value - parent


def _barrier(report: FusionReport) -> float | None:
    return report.barrier.error if isinstance(report, PathReport) else None


def _stem(path: str) -> str:
    return Path(path).stem
