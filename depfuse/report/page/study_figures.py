"""The drawings of a study: its history, what matters, how each parameter matters, and quality against seconds."""

from __future__ import annotations

from depfuse.report.page.figures import Line, Mark, bar, chart, legend
from depfuse.report.page.markup import Html, element
from depfuse.report.page.numbers import decimal, per_cent
from depfuse.report.page.scales import Scale, linear, logarithmic, named
from depfuse.report.study import StudyReport
from depfuse.study.trials import (
    Slice,
    TrialRecord,
    best_so_far,
    complete_trials,
    is_wide,
    pareto_front,
    slices_of,
)
from depfuse.text import counted

SLICES = 6  # of the most important parameters
_MARGIN = 0.05  # share of a scale left free at its ends


def history(report: StudyReport) -> Html:
    """Draw a mark for each trial and the best so far as a curve; trials that did not complete are strokes below."""
    complete, best = complete_trials(report.trials), best_so_far(report.trials, labelled=report.labelled)
    given_up = [trial for trial in report.trials if trial.state != "complete"]
    corners: list[tuple[float, float | None]] = []
    for trial, record in zip(complete, best, strict=True):
        if corners:
            corners.append((trial.trial, corners[-1][1]))
        corners.append((trial.trial, _shown(report, record)))
    corners.append((max(trial.trial for trial in report.trials), corners[-1][1]))
    lines = [Line("best so far", "naive", corners)]
    marks = [Mark(trial.trial, None, "other", f"trial {trial.trial}, {trial.state}") for trial in given_up]
    marks += [_mark(report, trial, trial.trial, _shown(report, trial)) for trial in complete]
    says = (
        f"History of {counted(len(report.trials), 'trial')}: {_title(report)} of the first complete one"
        f" {_text(report, complete[0])}, of the best one, trial {best[-1].trial}, {_text(report, best[-1])}"
    )
    samples = {"trial": marks[-1]}
    if given_up:
        samples["given up"] = marks[0]
    across = linear([trial.trial for trial in report.trials], _MARGIN, whole=True)
    drawing = chart(says, "trial", _title(report), lines, marks, x=across, y=_scale(report))
    return element("div", drawing, legend(lines, samples))


def importance_bars(shares: dict[str, float]) -> Html:
    """Draw a bar for the share of each parameter, the largest on top."""
    largest = max(shares.values(), default=0.0) or 1.0
    rows = [
        element(
            "li", element("span", name), bar(share / largest), element("span", per_cent(share) + " %", class_="number")
        )
        for name, share in shares.items()
    ]
    return element("ul", *rows, class_="bars named")


def slice_charts(report: StudyReport) -> list[Html]:
    """Draw quality against each of the `SLICES` most important parameters, over the complete trials that have it."""
    slices = slices_of(report.trials)
    by_importance = list(report.importances or {})
    slices.sort(key=lambda part: by_importance.index(part.name) if part.name in by_importance else len(by_importance))
    drawings = []
    for part in slices[:SLICES]:
        if part.numeric:
            heights = [float(value) for value in part.values]
            scale = (logarithmic if part.log else linear)(heights, _MARGIN)
        else:
            names = sorted({str(value) for value in part.values})
            heights, scale = [float(names.index(str(value))) for value in part.values], named(names)
        marks = [
            _mark(report, trial, _shown(report, trial), height)
            for trial, height in zip(part.records, heights, strict=True)
        ]
        drawings.append(chart(_says(report, part), _title(report), part.name, (), marks, x=_scale(report), y=scale))
    return drawings


def pareto(report: StudyReport) -> Html:
    """Draw the quality of each complete trial against its seconds, and the front of trials that none beats in both."""
    complete, front = complete_trials(report.trials), pareto_front(report.trials, labelled=report.labelled)
    seconds = [_seconds(trial) for trial in complete]
    lines = [Line("no other is as good and as fast", "look0", [(_seconds(t), _shown(report, t)) for t in front])]
    chosen = {trial.trial for trial in front}
    others = [_mark(report, t, _seconds(t), _shown(report, t), "other") for t in complete if t.trial not in chosen]
    marks = [_mark(report, t, _seconds(t), _shown(report, t), label=str(t.trial)) for t in front]
    says = f"{_title(report)} and seconds of {counted(len(complete), 'trial')}; no other is as good and as fast as " + (
        ", ".join(f"trial {t.trial} ({_text(report, t)}, {decimal(_seconds(t), 2)} s)" for t in front)
    )
    scale = (logarithmic if min(seconds) > 0 else linear)(seconds, _MARGIN)
    samples = {"no other is as good and as fast": marks[0]} | ({"other trial": others[0]} if others else {})
    drawing = chart(says, "seconds of a fusion", _title(report), lines, [*others, *marks], x=scale, y=_scale(report))
    return element("div", drawing, legend((), samples))


def _says(report: StudyReport, part: Slice) -> str:
    best = min(part.records, key=lambda trial: -_shown(report, trial) if report.labelled else _shown(report, trial))
    return (
        f"{_title(report)} by {part.name}, {counted(len(part.records), 'trial')}: best at {best.parameters[part.name]}"
    )


def _mark(
    report: StudyReport, trial: TrialRecord, x: float, y: float, look: str = "look0", label: str | None = None
) -> Mark:
    says = f"trial {trial.trial}: {_text(report, trial)}, {decimal(_seconds(trial), 2)} s"
    return Mark(x, y, look, says, label)


def _scale(report: StudyReport) -> Scale:
    """Choose the scale of the quality: linear for accuracies, whose ratios mean nothing."""
    values = [_shown(report, trial) for trial in complete_trials(report.trials)]
    return (logarithmic if not report.labelled and is_wide(values) else linear)(values, _MARGIN)


def _title(report: StudyReport) -> str:
    return report.by.title


def _shown(report: StudyReport, trial: TrialRecord) -> float:
    return trial.shown_quality(report.by)


def _text(report: StudyReport, trial: TrialRecord) -> str:
    return f"{report.by.text(trial.quality)}{'' if report.by.labelled or report.by.name else ' nats'}"


def _seconds(trial: TrialRecord) -> float:
    return trial.seconds or 0.0
