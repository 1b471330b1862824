"""The details of a fusion, and of the path between its parents."""

from __future__ import annotations

from collections.abc import Sequence

from depfuse.report.page.figures import Line, chart, legend
from depfuse.report.page.markup import Html, element, join
from depfuse.report.page.numbers import decimal, nats, score, unbroken
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
from depfuse.report.schema import FusionReport, GroupsSummary, PathReport, PathRow
from depfuse.report.sentences import barrier_sentence, loading_lines
from depfuse.report.tables import (
    agreement_columns,
    ensemble_name,
    fusion_rows,
    label_cells,
    label_heads,
    score_names,
    short_names,
)
from depfuse.tasks.scores import ACCURACY, AGREEMENT
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
    if not report.labelled:
        agrees = "agrees with the ensemble on" if report.child.by == AGREEMENT else f"has {report.child.by.name}"
        return f"child {agrees} {report.child.by.text(report.child.value)}, no labels"
    scores = [
        f"{name} {own.by.text(own.value)}" for name, own in (("child", report.child), ("ensemble", report.ensemble))
    ]
    return f"{'' if report.child.by == ACCURACY else f'{report.child.by.name}: '}{', '.join(scores)}"


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
    if report.labelled:
        heads, columns = label_heads(report.child), [label_cells(scores) for _, scores in rows]
    else:
        heads, columns = agreement_columns(short_names(report.parents), [scores for _, scores in rows])
    cells = [[name, *own] for (name, _), own in zip(rows, columns, strict=True)]
    return section("Scores", plain_table("Scores", ["network", *heads], cells, marked=child))


def _family(report: FusionReport) -> Html:
    share, loss = score_names(report.child)
    heads = ("candidate", "disagreement", share, loss, "seconds")
    rows = [
        (row.name, nats(row.disagreement), row.by.text(row.value), nats(row.nats), decimal(row.seconds, 1))
        for row in report.ranked_family
    ]
    return section("Candidates, the child first", plain_table("Candidates", heads, rows, marked=0))


def _path(report: PathReport) -> Html:
    curves = report.curves
    looks = {name: f"look{number % _LOOKS}" for number, name in enumerate(curves)}
    says = barrier_sentence(report)
    ensemble = report.ensemble

    def lines(loss: bool) -> list[Line]:
        level = ensemble.nats if loss else ensemble.by.number(ensemble.value)
        drawn = [Line(ensemble_name(report.child), "ensemble", [(row.alpha, level) for row in report.path])]
        drawn.append(Line("naive average", "naive", _points(report.naive_path, loss)))
        return drawn + [Line(name, looks[name], _points(rows, loss)) for name, rows in curves.items()]

    names = score_names(report.child)
    charts = [
        chart(f"{what} between the parents. {says}", "share of the second parent", name, lines(loss))
        for what, name, loss in (
            (_capital(names[0]), report.child.by.title, False),
            (_capital(names[1]), names[1], True),
        )
    ]
    told = [name.replace(":", ": ") for name in (*curves, "naive")]  # which may go on in the next line
    heads = ["share", *(f"{name} {what}" for name in told for what in names)]
    rows = [
        [
            decimal(several[0].alpha, 2),
            *(cell for row in several for cell in (score(row.by, row.value), nats(row.nats))),
        ]
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
    return [(row.alpha, row.nats if loss else row.by.number(row.value)) for row in rows]


def _capital(name: str) -> str:
    return f"{name[0].upper()}{name[1:]}"


def _groups(groups: GroupsSummary) -> Html:
    proof = "not proved" if groups.proof_error is None else f"proved, relative error {groups.proof_error:.1e}"
    line = f"{counted(groups.count, 'free group')}, {counted(groups.free_channels, 'channel')}; {proof}."
    fixed = on_demand(f"Fixed: {len(groups.fixed)}", pairs(groups.fixed)) if groups.fixed else None
    return section("Channel groups", element("p", line), fixed)


def _subject(report: FusionReport) -> Html:
    files = {f"parent {number}": parent.path or "in memory" for number, parent in enumerate(report.parents, start=1)}
    images = "test images" if report.labelled else "images, no labels"
    rows = {"architecture": report.architecture, "data": f"{report.data}, {report.images:,} {images}", **files}
    return section(
        "Networks and data", pairs(rows if report.child.path is None else {**rows, "child": report.child.path})
    )
