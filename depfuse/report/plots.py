"""Plots, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from depfuse.report.schema import FusionReport, PathReport, PathRow
from depfuse.report.tables import ensemble_name, score_names, short_names
from depfuse.tasks.scores import ACCURACY, AGREEMENT

# Of Okabe and Ito's palette, which people with any colour vision can tell apart.
MATCHED, NAIVE, ENSEMBLE = "#0072B2", "#D55E00", "#555555"
CANDIDATE = "#999999"
METHODS = (MATCHED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "o^vP*X"
BETWEEN = 0.08  # free width between two drawings, a share of their mean width: room for the last tick's name


def draw_path(report: PathReport, path: Path, kind: str = "png") -> None:
    """Draw `path_figure`, and write the picture (png, pdf or svg) to `path`."""
    save(path_figure(report), path, kind)


def draw_family(report: FusionReport, path: Path, kind: str = "png") -> None:
    """Draw `family_figure`, and write the picture (png, pdf or svg) to `path`."""
    save(family_figure(report), path, kind)


def path_figure(report: PathReport) -> Figure:
    """Draw score and loss between the two parents.

    The paths by all methods and the naive path share their ends, which are the parents themselves; the
    ensemble's score and loss are a dashed line. A child that is refitted, where the path is not, is a star.
    """
    curves = report.curves
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    score, loss = figure.subplots(1, 2)
    measure, nats = report.child.by, score_names(report.child)[1]
    _draw(
        score,
        measure.title,
        {name: [measure.number(row.value) for row in rows] for name, rows in curves.items()},
        [measure.number(row.value) for row in report.naive_path],
        measure.number(report.ensemble.value),
        report.path,
        ensemble_name(report.child),
    )
    _draw(
        loss,
        f"{nats} (nats)" if measure in (ACCURACY, AGREEMENT) else nats,
        {name: [_number(row.nats) for row in rows] for name, rows in curves.items()},
        [_number(row.nats) for row in report.naive_path],
        _number(report.ensemble.nats),
        report.path,
        ensemble_name(report.child),
    )
    if report.child_at is not None:
        for axes, value in ((score, measure.number(report.child.value)), (loss, _number(report.child.nats))):
            axes.plot(
                [report.child_at], [value], color=MATCHED, marker="*", linestyle="none", markersize=12, label="child"
            )
    first, second = short_names(report.parents)
    figure.suptitle(f"{first}  →  {second}", fontsize="medium")
    handles, labels = score.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    return figure


def family_figure(report: FusionReport) -> Figure:
    """Draw the candidates' score, the disagreement that chose among them, and their seconds.

    The parents' scores are dotted lines, the ensemble's is dashed; the child is coloured.
    """
    rows = report.ranked_family[::-1]
    figure = Figure(figsize=(10, 1.5 + 0.32 * len(rows)), layout=ConstrainedLayoutEngine(wspace=BETWEEN))
    FigureCanvasAgg(figure)
    score, disagreement, seconds = figure.subplots(1, 3, sharey=True)
    measure = report.child.by
    places = range(len(rows))
    colours = [MATCHED if row.chosen else CANDIDATE for row in rows]
    score.scatter([measure.number(row.value) for row in rows], places, color=colours, zorder=3)
    for number, parent in enumerate(report.parents):
        label = None if number else "parents"
        score.axvline(measure.number(parent.value), color="black", linestyle=":", linewidth=1.5, label=label)
    level = measure.number(report.ensemble.value)
    score.axvline(level, color=ENSEMBLE, linestyle="--", linewidth=1.5, label=ensemble_name(report.child))
    score.set_xlabel(measure.title)
    disagreement.scatter([_number(row.disagreement) for row in rows], places, color=colours, zorder=3)
    disagreement.set_xlabel("disagreement (nats)" if measure in (ACCURACY, AGREEMENT) else "disagreement")
    seconds.barh(places, [row.seconds for row in rows], color=colours)
    seconds.set_xlabel("seconds")
    score.set_yticks(places, [row.name for row in rows])
    for axes in (score, disagreement, seconds):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    chosen = Line2D([], [], color=MATCHED, marker="o", linestyle="none", label="child")
    handles = [chosen, *score.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    for axes in (score, disagreement, seconds):
        _give_ticks_room(figure, axes)
    return figure


def save(figure: Figure, path: Path, kind: str) -> None:
    """Write a figure as png, pdf or svg, the same bytes for the same figure."""
    # Dates and random names in the file would make equal runs differ.
    metadata = {"png": None, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    with matplotlib.rc_context({"svg.hashsalt": "depfuse"}):
        figure.savefig(path, format=kind, dpi=150, metadata=metadata)


def _give_ticks_room(figure: Figure, axes: Axes) -> None:
    """Mark as many values below a drawing as have room for their names."""
    for most in (5, 4, 3, 2):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]))
        figure.draw_without_rendering()
        boxes = [tick.label1.get_window_extent() for tick in axes.xaxis.get_major_ticks()]
        if all(first.x1 < second.x0 for first, second in pairwise(boxes)):
            return


def _draw(
    axes: Axes,
    title: str,
    curves: Mapping[str, Sequence[float]],
    naive: Sequence[float],
    ensemble: float,
    rows: Sequence[PathRow],
    together: str,
) -> None:
    alphas = [row.alpha for row in rows]
    axes.axhline(ensemble, color=ENSEMBLE, linestyle="--", linewidth=1, label=together)
    axes.plot(alphas, naive, color=NAIVE, marker="s", markersize=4, label="naive average")
    for number, (name, values) in enumerate(curves.items()):
        colour, marker = METHODS[number % len(METHODS)], MARKERS[number % len(MARKERS)]
        style = "-" if number < len(METHODS) else ":"
        # Each is thinner than the one before, so that of curves that are the same all can be seen.
        width = 1.5 + 0.5 * (len(curves) - 1 - number)
        axes.plot(
            alphas,
            values,
            color=colour,
            marker=marker,
            markersize=3 + width,
            linestyle=style,
            linewidth=width,
            label=name,
        )
    ends = [naive[0], naive[-1]]
    axes.plot([0, 1], ends, color="black", marker="D", linestyle="none", markersize=6, label="parents", zorder=3)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    axes.set_xlabel("share of the second parent")
    axes.set_ylabel(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _number(loss: float | None) -> float:
    """Turn a loss that was not finite into a gap in its line."""
    return float("nan") if loss is None else loss
