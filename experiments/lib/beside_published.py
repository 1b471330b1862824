"""How a study of a published protocol is shown: our networks by parents, and the published figures beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from experiments.lib.layouts import estimated, not_possible, with_names
from experiments.lib.parents.families import Family
from experiments.lib.parents.trained import FOLDER
from experiments.lib.tables import Estimate, markdown

if TYPE_CHECKING:
    from experiments.lib.steps import Step
    from experiments.lib.study import Chosen, Study

COSTS = {"flops": "multiplications", "parameters": "parameters", "cpu_seconds": "CPU seconds"}  # times a parent's


@dataclass(frozen=True)
class Published:
    """Figures of a paper that stand in a table beside ours.

    Attributes
    ----------
    heading
        Of their column: parents and paper.
    figures
        Name of a step, or of a row that only the paper has -> per cent of the test images.
    """

    heading: str
    figures: Mapping[str, str]


@dataclass(frozen=True)
class BesidePublished:
    """Shows a study: a table for each kind of parents, in which steps are rows.

    Attributes
    ----------
    published
        Kind of parents -> columns of papers.
    source
        A sentence on where published figures are from.
    given
        Set -> what its parents were given to learn, where that is less than the protocol says.
    """

    published: Mapping[str, tuple[Published, ...]]
    source: str
    given: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, study: Study, table: pd.DataFrame, chosen: Chosen) -> str:
        """Make the tables in Markdown, and list what is open."""
        kinds: dict[str, list[str]] = {}
        for name, family in study.parents.items():
            kinds.setdefault(_kind(family), []).append(name)
        measured = set(table["set"])
        parts, opened = [], []
        for kind, names in kinds.items():
            there = [name for name in names if name in measured]
            for name in names:
                if name not in measured:
                    where = "on a GPU" if study.parents[name].gpu else "on a CPU"
                    opened.append(f"- {kind}, {study.parents[name].title}: {where}, `--sets {name}`")
            if there:
                parts.append(f"## {kind}\n\n{self._table(study, kind, there, table, chosen)}")
        if opened:
            parts.append("Not measured yet:\n\n" + "\n".join(opened))
        return "\n\n".join([*parts, *not_possible(table), self.source])

    def _table(self, study: Study, kind: str, names: list[str], table: pd.DataFrame, chosen: Chosen) -> str:
        published = self.published.get(kind, ())
        titles = [f"{study.parents[name].title} (seeds: {_seeds(table, name)})" for name in names]
        lines = []
        steps = {name: step for own in chosen.values() for name, step in own.items()}
        rows = with_names(table[table["set"].isin(names)], steps)
        for step in dict.fromkeys([*steps, *(row for paper in published for row in paper.figures)]):
            found = [estimated(table, name, steps[step], "accuracy") if step in steps else None for name in names]
            cells = [_cell(table, name, steps.get(step), one) for name, one in zip(names, found, strict=True)]
            cells += [paper.figures.get(step, "") for paper in published]
            if any(cells):
                own = rows[rows["step"] == step]
                costs = [_mean(own[column]) if column in own else "" for column in COSTS]
                lines.append([step, *cells, *costs])
        notes = [f"{study.parents[name].title}: {self.given[name]}." for name in names if name in self.given]
        headers = ["network", *titles, *(paper.heading for paper in published), *COSTS.values()]
        return "\n\n".join([markdown(headers, lines), *notes])


def _cell(table: pd.DataFrame, name: str, step: Step | None, found: Estimate | None) -> str:
    if step is None or found is None:
        return ""
    seeds, whole = _seeds(table[table["settings"] == step.described], name), _seeds(table, name)
    return found.text() if seeds == whole else f"{found.text()} ({seeds} of {whole} seeds)"


def _kind(family: Family) -> str:
    return str(family.parents(0, 2, FOLDER).kind)


def _seeds(table: pd.DataFrame, name: str) -> int:
    return int(table[table["set"] == name]["seed"].nunique())


def _mean(values: pd.Series) -> str:
    found = Estimate.of(values.tolist())
    return "" if found is None else f"{found.mean:.2f}" if found.mean < 10 else f"{found.mean:.0f}"
