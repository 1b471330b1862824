"""Plots of a search: its history, what matters, how each parameter matters, and quality against seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from depfuse.report.plots import CANDIDATE, MATCHED, NAIVE, save
from depfuse.study.trials import (
    TrialRecord,
    best_so_far,
    complete_trials,
    is_wide,
    pareto_front,
    quality_title,
    slices_of,
)

COLUMNS = 4


def draw_history(records: Sequence[TrialRecord], path: Path, *, labelled: bool) -> None:
    """The quality of each trial and of the best so far; below them, what was given up."""
    figure, (axes,) = _figure(1, 7, 4)
    complete = complete_trials(records)
    numbers, values = [record.trial for record in complete], _shown(complete, labelled)
    axes.plot(numbers, values, color=MATCHED, marker="o", markersize=4, linestyle="none", label="trial")
    best = _shown(best_so_far(records, labelled=labelled), labelled)
    axes.plot(numbers, best, color=NAIVE, drawstyle="steps-post", label="best so far")
    given_up = [record.trial for record in records if record.state != "complete"]
    place = axes.get_xaxis_transform()
    axes.plot(given_up, [0.01] * len(given_up), "|", color=CANDIDATE, transform=place, label="given up")
    axes.set_xlabel("trial")
    axes.set_ylabel(quality_title(labelled=labelled))
    _scale_quality(axes, complete, labelled)
    axes.legend(frameon=False)
    save(figure, path, "png")


def draw_importances(shares: Mapping[str, float], path: Path) -> None:
    """A bar for the share of each parameter, the largest on top."""
    figure, (axes,) = _figure(1, 7, 1.2 + 0.28 * len(shares))
    names = list(shares)[::-1]
    axes.barh(range(len(names)), [shares[name] for name in names], color=MATCHED)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("importance")
    save(figure, path, "png")


def draw_slices(records: Sequence[TrialRecord], path: Path, *, labelled: bool) -> None:
    """The quality against each parameter, of the trials that have it."""
    slices = slices_of(records)
    rows = max(1, math.ceil(len(slices) / COLUMNS))
    figure, grid = _figure(len(slices), 3 * COLUMNS, 2.6 * rows)
    for axes, own in zip(grid, slices, strict=True):
        axes.scatter(own.values, _shown(own.records, labelled), s=12, color=MATCHED)
        axes.set_title(own.name, fontsize="small")
        axes.tick_params(labelsize="x-small")
        if not own.numeric:
            axes.tick_params(axis="x", labelrotation=30)
        elif own.log:
            axes.set_xscale("log")
        _scale_quality(axes, complete_trials(records), labelled)
    figure.supylabel(quality_title(labelled=labelled), fontsize="small")
    save(figure, path, "png")


def draw_pareto(records: Sequence[TrialRecord], path: Path, *, labelled: bool) -> None:
    """The quality of each trial against its seconds, and the trials that no other surpasses in both."""
    figure, (axes,) = _figure(1, 6, 4)
    complete, front = complete_trials(records), pareto_front(records, labelled=labelled)[::-1]
    axes.scatter(
        [record.seconds or 0.0 for record in complete],
        _shown(complete, labelled),
        color=CANDIDATE,
        s=16,
    )
    seconds = [record.seconds or 0.0 for record in front]
    axes.plot(seconds, _shown(front, labelled), color=MATCHED, marker="o", markersize=5)
    for record in front:
        place = (record.seconds or 0.0, record.shown_quality(labelled=labelled))
        axes.annotate(str(record.trial), place, textcoords="offset points", xytext=(4, 4), fontsize="x-small")
    axes.set_xscale("log")
    axes.set_xlabel("seconds of a fusion")
    axes.set_ylabel(quality_title(labelled=labelled))
    _scale_quality(axes, complete, labelled)
    save(figure, path, "png")


def _figure(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    columns = min(count, COLUMNS) or 1
    grid = [figure.add_subplot(math.ceil(count / columns), columns, place + 1) for place in range(count)]
    for axes in grid:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _scale_quality(axes: Axes, complete: Sequence[TrialRecord], labelled: bool) -> None:
    if not labelled and is_wide(_shown(complete, labelled)):
        axes.set_yscale("log")


def _shown(records: Sequence[TrialRecord], labelled: bool) -> list[float]:
    return [record.shown_quality(labelled=labelled) for record in records]
