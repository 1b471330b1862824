"""The details of a fusion, and of the path between its parents."""

from __future__ import annotations

from collections.abc import Sequence

from depfuse.report.page.figures import Line, chart, legend
from depfuse.report.page.markup import Html, element, join
from depfuse.report.page.numbers import decimal, nats, per_cent, unbroken
from depfuse.report.page.parts import (
    environment_section,
    on_demand,
    pairs,
    recipe_section,
    seconds_section,
    section,
    warnings_part,
)
from depfuse.report.page.tables import plain_table
from depfuse.report.schema import FusionReport, GroupsSummary, PathReport, PathRow, ScoreValues
from depfuse.report.sentences import barrier_sentence, loading_lines
from depfuse.report.tables import fusion_rows, short_names
from depfuse.text import counted

_LOOKS = 5  # that the style sheet has for the curves of methods


def fusion_details(report: FusionReport) -> Html:
    """Show verdict, scores, path, candidates, shares, seconds, recipe, groups and command of one fusion."""
    return join(
        [
            element("p", unbroken(report.verdict), class_="verdict"),
            _loading(report),
            warnings_part(report.not_converged),
            element("div", *_left(report), class_="column"),
            element("div", *_right(report), class_="column"),
        ]
    )


def _loading(report: FusionReport) -> Html | None:
    says, *code = loading_lines(report) or [""]
    return join([element("p", says), element("pre", "\n".join(line.strip() for line in code))]) if says else None


def fusion_summary(report: FusionReport) -> str:
    """Summarise a fusion in a line."""
    return f"child {per_cent(report.child.accuracy)} %, ensemble {per_cent(report.ensemble.accuracy)} %"


def _left(report: FusionReport) -> list[Html]:
    parts = [_scores(report)]
    if isinstance(report, PathReport):
        parts.append(_path(report))
    if report.family:
        parts.append(_family(report))
    if report.shares is not None and report.shares.parts:
        heads = ["part", *(f"share of {name}" for name in short_names(report.parents))]
        rows = [[part, *(decimal(share, 2) for share in shares)] for part, shares in report.shares.parts.items()]
        parts.append(section("Shares of the parents", plain_table("Shares of the parents", heads, rows)))
    return [*parts, _subject(report), environment_section(report.environment, report.command)]


def _right(report: FusionReport) -> list[Html]:
    parts = [seconds_section(report.seconds.model_dump()), recipe_section(report.recipe)]
    return [*parts, _groups(report.groups)]


def _scores(report: FusionReport) -> Html:
    rows = fusion_rows(report)
    child = next(number for number, (_, scores) in enumerate(rows) if scores is report.child)
    cells = [[name, *_score_cells(scores)] for name, scores in rows]
    heads = ("network", "accuracy %", "loss (nats)", "calibration error %")
    return section("Scores", plain_table("Scores", heads, cells, marked=child))


def _family(report: FusionReport) -> Html:
    heads = ("candidate", "disagreement (nats)", "accuracy %", "loss (nats)", "seconds")
    rows = [
        (row.name, nats(row.disagreement), per_cent(row.accuracy), nats(row.loss), decimal(row.seconds, 1))
        for row in report.ranked_family
    ]
    return section("Candidates, the child first", plain_table("Candidates", heads, rows, marked=0))


def _path(report: PathReport) -> Html:
    curves = {method.name: method.path for method in report.methods} or {"matched": report.path}
    looks = {name: f"look{number % _LOOKS}" for number, name in enumerate(curves)}
    says = barrier_sentence(report)
    ensemble = report.ensemble

    def lines(loss: bool) -> list[Line]:
        level = ensemble.loss if loss else 100 * ensemble.accuracy
        drawn = [Line("logit ensemble", "ensemble", [(row.alpha, level) for row in report.path])]
        drawn.append(Line("naive average", "naive", _points(report.naive_path, loss)))
        return drawn + [Line(name, looks[name], _points(rows, loss)) for name, rows in curves.items()]

    charts = [
        chart(f"Accuracy between the parents. {says}", "share of the second parent", "accuracy (%)", lines(False)),
        chart(f"Loss between the parents. {says}", "share of the second parent", "loss (nats)", lines(True)),
    ]
    heads = ["share", *(f"{name} {what}" for name in (*curves, "naive") for what in ("%", "nats"))]
    rows = [
        [decimal(several[0].alpha, 2), *(cell for row in several for cell in (per_cent(row.accuracy), nats(row.loss)))]
        for several in zip(*curves.values(), report.naive_path, strict=False)
    ]
    return section(
        "Path between the parents",
        element("p", says),
        element("div", *charts, class_="charts"),
        legend(lines(False)),
        on_demand("The path in numbers", plain_table("The path in numbers", heads, rows)),
    )


def _points(rows: Sequence[PathRow], loss: bool) -> list[tuple[float, float | None]]:
    return [(row.alpha, row.loss if loss else 100 * row.accuracy) for row in rows]


def _groups(groups: GroupsSummary) -> Html:
    proof = "not proved" if groups.proof_error is None else f"proved, relative error {groups.proof_error:.1e}"
    line = f"{counted(groups.count, 'free group')}, {counted(groups.free_channels, 'channel')}; {proof}."
    fixed = on_demand(f"Fixed: {len(groups.fixed)}", pairs(groups.fixed)) if groups.fixed else None
    return section("Channel groups", element("p", line), fixed)


def _subject(report: FusionReport) -> Html:
    files = {f"parent {number}": parent.path or "in memory" for number, parent in enumerate(report.parents, start=1)}
    rows = {"architecture": report.architecture, "data": f"{report.data}, {report.images:,} test images", **files}
    return section(
        "Networks and data", pairs(rows if report.child.path is None else {**rows, "child": report.child.path})
    )


def _score_cells(scores: ScoreValues) -> tuple[str, str, str]:
    calibration = scores.calibration_error
    return per_cent(scores.accuracy), nats(scores.loss), "not finite" if calibration is None else per_cent(calibration)
