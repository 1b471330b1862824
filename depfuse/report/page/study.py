"""The details of a study: the best trial, the four drawings, all trials, and what was searched."""

from __future__ import annotations

from depfuse.report.page.markup import Html, element, join
from depfuse.report.page.numbers import decimal, nats, per_cent, unbroken
from depfuse.report.page.parts import environment_section, pairs, recipe_section, section, warnings_part
from depfuse.report.page.scores import settings_text
from depfuse.report.page.study_figures import history, importance_bars, pareto, slice_charts
from depfuse.report.page.tables import Column, sortable_table
from depfuse.report.study import StudyReport
from depfuse.report.tables import drawn_text, search_sentence
from depfuse.study.trials import TrialRecord, best_first
from depfuse.text import counted


def study_details(report: StudyReport) -> Html:
    """Show sentence, history, front, slices, importances, all trials, the best recipe, and command of one study."""
    best, sentence = report.best, study_sentence(report)
    figures = [section("History", history(report)), section("Quality and seconds", pareto(report))]
    return join(
        [
            element("p", unbroken(f"{sentence[0].upper()}{sentence[1:]}."), class_="verdict"),
            warnings_part(best.not_converged),
            element("div", *figures, class_="column charts whole"),
            element("div", _importances(report), class_="column"),
            element("div", _recipe(best), class_="column"),
            element("div", _slices(report), _trials(report), class_="column whole"),
            element("div", _subject(report), class_="column"),
            element("div", environment_section(report.environment, report.command), class_="column"),
        ]
    )


def study_summary(report: StudyReport) -> str:
    """Summarise a study in a line."""
    return f"search of {counted(len(report.trials), 'trial')}, the best {report.best.trial}"


def study_sentence(report: StudyReport) -> str:
    """Say which trial is the best, without a full stop."""
    return search_sentence(report.trials, report.by)


def _importances(report: StudyReport) -> Html:
    if report.importances is None:
        return section("Importance of the parameters", element("p", "Too few trials to tell.", class_="quiet"))
    return section("Importance of the parameters", importance_bars(report.importances))


def _recipe(best: TrialRecord) -> Html:
    assert best.recipe is not None
    command = element("pre", f"depfuse fuse --preset trial-{best.trial}.json")
    says = element("p", "With the networks and the data of the search, its child is made by", class_="quiet")
    return join([recipe_section(best.recipe, f"Recipe of trial {best.trial}"), section("Its child", says, command)])


def _slices(report: StudyReport) -> Html | None:
    drawings = slice_charts(report)
    if not drawings:
        return None
    return section("Quality by parameter, the most important first", element("div", *drawings, class_="charts slices"))


def _trials(report: StudyReport) -> Html:
    complete = best_first(report.trials, labelled=report.labelled)
    others = [trial for state in ("pruned", "refused") for trial in report.trials if trial.state == state]
    head = _head(report)
    columns: list[Column[TrialRecord]] = [
        Column("Trial", lambda trial: str(trial.trial), lambda trial: trial.trial),
        Column(head, lambda trial: _quality(report, trial), _final),
        Column("Seconds", lambda trial: decimal(trial.seconds, 2), lambda trial: trial.seconds),
        Column("State", lambda trial: trial.state if trial.reason is None else f"{trial.state}: {trial.reason}"),
        Column("Drawn", drawn_text),
    ]
    table = sortable_table("Trials", columns, [*complete, *others], None, head, rising=not report.labelled)
    label = element(
        "label", "Show trials with all of these words ", element("input", type="search", autocomplete="off")
    )
    field = element("div", label, element("p", role="status", class_="quiet"), class_="filter trials")
    return section("Trials, the best first", field, table)


def _quality(report: StudyReport, trial: TrialRecord) -> str:
    if trial.state != "complete":
        return ""
    if report.measure is not None:
        return report.by.text(trial.quality)
    return per_cent(trial.quality) if report.labelled else nats(trial.quality)


def _head(report: StudyReport) -> str:
    """Head the column of qualities; cells of other measures have their unit."""
    if report.measure is not None:
        return report.measure[:1].upper() + report.measure[1:]
    return "Accuracy %" if report.labelled else "Disagreement (nats)"


def _final(trial: TrialRecord) -> float | None:
    # That of a pruned trial is of fewer images, and not to be compared.
    return trial.quality if trial.state == "complete" else None


def _subject(report: StudyReport) -> Html:
    files = {f"parent {number}": path for number, path in enumerate(report.parents, start=1)}
    kinds = ", ".join(dict.fromkeys(report.architectures))
    judged = report.by.measure.name if report.labelled else "agreement with the ensemble, labels unread"
    rows = {
        "architecture": kinds,
        "data": report.data,
        **files,
        "calibrated on": counted(report.calibration, "training image"),
        "judged by": f"{judged}, {counted(report.judged, 'other training image')}",
        "searched for": "quality and seconds" if report.timed else "quality",
        "trials asked for": f"{report.asked:,}",
        "kept settings": settings_text(report.kept) or "none",
    }
    return section("Networks and data", pairs(rows))
