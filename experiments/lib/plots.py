"""Pictures of a study: accuracy against seconds, and estimates by factor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from depfuse.io.atomic_files import replacing
from depfuse.report.plot_kind import plot_kind
from depfuse.report.plots import ENSEMBLE, MARKERS, save
from experiments.lib.tables import Estimate

PANELS = 4  # side by side


def draw_costs(panels: Mapping[str, pd.DataFrame], steps: Sequence[str], path: Path) -> None:
    """Accuracy against seconds of every step, one panel per table, with the intervals as error bars.

    Steps that cost nothing, the parents and their ensemble, are lines. The tables have the columns `step`, `accuracy`
    and `seconds`.

    Raises
    ------
    ReportError
        The name of the picture is none of png, pdf and svg.
    """
    kind = plot_kind(path)
    columns = min(PANELS, len(panels))
    lines = -(-len(panels) // columns)
    shown = [step for step in steps if any((table["step"] == step).any() for table in panels.values())]
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines + 0.2 * len(shown) / columns + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for place, (title, table) in zip(axes, panels.items(), strict=False):
        place.set_title(title, fontsize="small")
        for number, step in enumerate(shown):
            _draw(place, table[table["step"] == step], step, number, handles)
        place.set_xscale("log")
        place.set_xlabel("seconds")
        place.set_ylabel("accuracy (%)")
        place.grid(alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    figure.legend(
        [handles[step] for step in shown if step in handles],
        [step for step in shown if step in handles],
        loc="outside lower center", ncols=max(1, columns), frameon=False, fontsize="small",
    )  # fmt: skip
    with replacing(path) as temporary:
        save(figure, temporary, kind)


def _draw(axes: Axes, table: pd.DataFrame, step: str, number: int, handles: dict[str, Any]) -> None:
    accuracy, seconds = Estimate.of(table["accuracy"].tolist()), Estimate.of(table["seconds"].tolist())
    if accuracy is None:
        return
    if seconds is None or seconds.mean == 0.0:
        style = ("--", ":", "-.")[number % 3]
        handles[step] = axes.axhline(100 * accuracy.mean, color=ENSEMBLE, linestyle=style, linewidth=1)
        return
    colours = colormaps["tab10"]
    bars = [None if math.isnan(e.interval) else [[s * e.interval]] * 2 for e, s in ((accuracy, 100), (seconds, 1))]
    handles[step] = axes.errorbar(
        [seconds.mean], [100 * accuracy.mean], yerr=bars[0], xerr=bars[1],
        color=colours(number % 10), marker=MARKERS[number // 10 % len(MARKERS)], markersize=5, linestyle="none",
        elinewidth=1, capsize=2,
    )  # fmt: skip


def draw_intervals(
    panels: Mapping[str, Mapping[str, Mapping[str, Estimate]]], path: Path, label: str, *, power_laws: bool = False
) -> None:
    """Estimates with their intervals: a panel for each factor, a colour for each family, a place for each setting.

    Where all settings of a panel are numbers they are joined by lines, on a logarithmic axis where they span a
    hundredfold.

    Parameters
    ----------
    panels
        Factor -> family -> setting -> estimate.
    label
        What is estimated.
    power_laws
        Make both axes logarithmic, so that power laws are straight lines.

    Raises
    ------
    ReportError
        The name of the picture is none of png, pdf and svg.
    """
    kind = plot_kind(path)
    figure = Figure(figsize=(5.0 * len(panels), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    handles: dict[str, Any] = {}
    everywhere = list(dict.fromkeys(family for families in panels.values() for family in families))
    for place, (factor, families) in zip(axes, panels.items(), strict=True):
        names = list(dict.fromkeys(name for settings in families.values() for name in settings))
        scale = _positions(names)
        for family, settings in families.items():
            number, ordered = everywhere.index(family), sorted(settings, key=scale.__getitem__)
            found = [settings[name] for name in ordered]
            bars = [0.0 if math.isnan(own.interval) else own.interval for own in found]
            handles[family] = place.errorbar(
                [scale[name] for name in ordered], [own.mean for own in found], yerr=bars,
                color=colormaps["tab10"](number), marker=MARKERS[number], markersize=5, capsize=2,
                linestyle="-" if _are_numbers(names) else "none",
            )  # fmt: skip
        if power_laws:
            place.loglog()
        elif _are_numbers(names):
            values = [value for value in scale.values() if value > 0]
            if values and max(values) >= 100 * min(values):
                place.set_xscale("symlog", linthresh=min(values))
        else:
            place.set_xticks(list(scale.values()), names, rotation=60, ha="right", fontsize="x-small")
        place.set_xlabel(factor)
        place.set_ylabel(label)
        place.grid(alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False)
    with replacing(path) as temporary:
        save(figure, temporary, kind)


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.replace(".", "", 1).isdecimal() for name in names)


def _positions(names: Sequence[str]) -> dict[str, float]:
    """Where on the axis each setting stands."""
    return {name: float(name) if _are_numbers(names) else float(place) for place, name in enumerate(names)}
