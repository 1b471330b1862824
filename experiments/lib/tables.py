"""Tables and plots of a study: means over seeds with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
# Heading -> column and decimals.
COSTS = {"parameters": ("parameters", 2), "seconds": ("seconds", 1), "CPU seconds": ("cpu_seconds", 1)}


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


def cost_table(
    table: pd.DataFrame,
    value: str,
    sets: Mapping[str, str],
    steps: Sequence[str],
    scale: float = 1.0,
    digits: int = 1,
) -> str:
    """Steps as rows and sets as columns, with their mean and `COSTS`, as a table in Markdown.

    Parameters
    ----------
    table
        Rows of a study with the columns `set`, `step`, `value` and those of `COSTS`.
    value
        The column that is shown, times `scale`.
    sets
        Set -> heading; in this order.
    steps
        In this order; those without any figure are left out.
    """
    table = table[table["set"].isin(sets)]
    found = estimates(table, "step", "set", value)
    costs = [(estimates(table, "step", "set", column), digits) for column, digits in COSTS.values()]
    headers = ["step", *sets.values(), *(["mean"] if len(sets) > 1 else []), *COSTS]
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
        for figures, places in costs:
            known = [figures[step, name].mean for name in there if (step, name) in figures]
            cells.append(f"{np.mean(known):.{places}f}" if known else "")
        rows.append([step, *cells])
    return markdown(headers, rows)
