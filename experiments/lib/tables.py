"""Tables and plots of a study: means over seeds with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from depfuse.io.atomic_files import replacing
from depfuse.report.plots import ENSEMBLE, MARKERS, plot_kind, save

CONFIDENCE = 0.95
PANELS = 4  # side by side


@dataclass(frozen=True)
class Estimate:
    """Mean of some runs and half the width of its 95 % confidence interval (Student's t); NaN for a single run."""

    mean: float
    interval: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Of the values that are there; None where there is none."""
        found = np.asarray([value for value in values if not math.isnan(value)], dtype=float)
        if len(found) == 0:
            return None
        if len(found) == 1 or not np.isfinite(found).all():
            return cls(float(found.mean()), math.nan)
        error = float(found.std(ddof=1)) / math.sqrt(len(found))
        return cls(float(found.mean()), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * error)

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """`63.9`, or `63.9 ± 0.4` of several runs."""
        mean = f"{round(scale * self.mean, digits) + 0.0:.{digits}f}"  # no -0.0
        return mean if math.isnan(self.interval) else f"{mean} ± {scale * self.interval:.{digits}f}"


def estimates(table: pd.DataFrame, row: str, column: str, value: str) -> dict[tuple[str, str], Estimate]:
    """(row, column) -> estimate over all rows of a study that agree in both."""
    found = {}
    for (name, other), part in table.groupby([row, column], sort=False):
        estimate = Estimate.of(part[value].tolist())
        if estimate is not None:
            found[str(name), str(other)] = estimate
    return found


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [list(headers), ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


Cost = tuple[str, str]
"""A column of seconds and its heading."""

CLOCK: Cost = ("seconds", "seconds")


def cost_table(
    table: pd.DataFrame,
    value: str,
    sets: Mapping[str, str],
    steps: Sequence[str],
    cost: Cost = CLOCK,
    scale: float = 1.0,
    digits: int = 1,
) -> str:
    """Steps as rows and sets as columns, with their mean, parameters and seconds, as a table in Markdown.

    Parameters
    ----------
    table
        Rows of a study with the columns `set`, `step`, `parameters`, `value` and that of the cost.
    value
        The column that is shown, times `scale`.
    sets
        Set -> heading; in this order.
    steps
        In this order; those without any figure are left out.
    """
    table = table[table["set"].isin(sets)]
    found, parameters, seconds = (estimates(table, "step", "set", name) for name in (value, "parameters", cost[0]))
    headers = ["step", *sets.values(), *(["mean"] if len(sets) > 1 else []), "parameters", cost[1]]
    rows = []
    for step in steps:
        own = [found.get((step, name)) for name in sets]
        there = [name for name, estimate in zip(sets, own, strict=True) if estimate is not None]
        if not there:
            continue
        cells = ["" if estimate is None else estimate.text(scale, digits) for estimate in own]
        if len(sets) > 1:
            # A mean over fewer sets than the other rows' could not be compared with theirs.
            whole = len(there) == len(sets)
            mean = Estimate(float(np.mean([found[step, name].mean for name in sets])), math.nan) if whole else None
            cells.append("" if mean is None else mean.text(scale, digits))
        for figures, places in ((parameters, 2), (seconds, 1)):
            known = [figures[step, name].mean for name in there if (step, name) in figures]
            cells.append(f"{np.mean(known):.{places}f}" if known else "")
        rows.append([step, *cells])
    return markdown(headers, rows)


def draw_costs(panels: Mapping[str, pd.DataFrame], steps: Sequence[str], path: Path, cost: Cost = CLOCK) -> None:
    """Accuracy against seconds of every step, one panel per table, with the intervals as error bars.

    Steps that cost nothing, the parents and their ensemble, are lines. The tables have the columns `step`, `accuracy`
    and that of the cost.

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
            _draw(place, table[table["step"] == step], step, number, cost[0], handles)
        place.set_xscale("log")
        place.set_xlabel(cost[1])
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


def _draw(axes: Axes, table: pd.DataFrame, step: str, number: int, cost: str, handles: dict[str, Any]) -> None:
    accuracy, seconds = Estimate.of(table["accuracy"].tolist()), Estimate.of(table[cost].tolist())
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
