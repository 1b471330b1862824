"""How a study is shown: one factor at a time with differences, or steps against what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from experiments.lib.plots import draw_costs, draw_intervals
from experiments.lib.steps import Step
from experiments.lib.tables import Estimate, cost_table, markdown

if TYPE_CHECKING:
    from experiments.lib.study import Chosen, Study

IN_NATS = ("loss", "judged")
TEST, BOTH = {"accuracy": "test"}, {"accuracy": "test", "held_out_accuracy": "held-out"}
BESIDE = {**BOTH, "parents_accuracy": "parents", "ensemble_accuracy": "ensemble"}


def estimated(table: pd.DataFrame, of: str, step: Step, value: str, against: Step | None = None) -> Estimate | None:
    """Mean over seeds in per cent, or that of the differences from another step, seed by seed."""
    rows = table[table["set"] == of].set_index("seed")
    values = rows[rows["settings"] == step.described][value]
    if against is not None:
        values = values - rows[rows["settings"] == against.described][value]
    return Estimate.of(((1.0 if value in IN_NATS else 100.0) * values).tolist())


def by_factor(study: Study, table: pd.DataFrame, chosen: Chosen) -> str:
    """One table per factor in Markdown, with the difference of each step from the factor's first that is there."""
    parts, names = [], [name for name in study.parents if name in set(table["set"])]
    for factor, steps in study.factors.items():
        headers = [factor]
        firsts = {}
        for name in names:
            rows = set(table[table["set"] == name]["settings"])
            firsts[name] = next((key for key, step in steps.items() if step.described in rows), "")
            titled = [f"{study.parents[name].title}: {heading}" for heading in study.columns.values()]
            headers += [*titled, f"against {firsts[name]}"]
        lines = []
        for key, step in steps.items():
            cells = []
            for name in names:
                shown = [estimated(table, name, step, value) for value in study.columns]
                first = steps.get(firsts[name], step)
                differs = None if step == first else estimated(table, name, step, "accuracy", first)
                digits = [3 if value in IN_NATS else 1 for value in (*study.columns, "accuracy")]
                cells += [
                    "" if found is None else found.text(digits=places)
                    for found, places in zip((*shown, differs), digits, strict=True)
                ]
            if key in chosen.get(factor, {}) and any(cells):
                lines.append([key, *cells, _seconds(table, step)])
        if lines:
            parts.append(markdown([*headers, "CPU seconds"], lines))
    return "\n\n".join([*parts, *not_possible(table)])


def _seconds(table: pd.DataFrame, step: Step) -> str:
    """Mean seconds of the processor for each set, in the sets' order."""
    own = table[table["settings"] == step.described].groupby("set", sort=False)["cpu_seconds"].mean()
    return " / ".join(f"{seconds:.1f}" for seconds in own)


def not_possible(table: pd.DataFrame) -> list[str]:
    """A list in Markdown of what could not be measured; empty where there is nothing of the kind."""
    refused = table[table["refused"] != ""].drop_duplicates(["set", "step", "refused"])
    lines = [f"- {row['set']}, {row['step']}: {row['refused']}" for row in refused.to_dict("records")]
    return ["Not possible:\n\n" + "\n".join(lines)] if lines else []


def draw_by_factor(study: Study, table: pd.DataFrame, chosen: Chosen, path: Path) -> None:
    """A panel for each factor: accuracy on the test images by step, with the intervals as bars."""
    panels: dict[str, dict[str, dict[str, Estimate]]] = {}
    for factor, steps in chosen.items():
        for name, family in study.parents.items():
            for key, step in steps.items():
                found = estimated(table, name, step, "accuracy")
                if found is not None:
                    panels.setdefault(factor, {}).setdefault(family.title, {})[key] = found
    draw_intervals(panels, path, "accuracy (%)")


def by_cost(study: Study, table: pd.DataFrame, chosen: Chosen) -> str:
    """One table per factor, kind of parents, number of images and column, in Markdown: steps, sets and costs."""
    parts = []
    for steps in chosen.values():
        named = with_names(table, steps)
        for value, heading in study.columns.items():
            for kind, names in _kinds(study, table).items():
                for count in _counts(named[named["set"].isin(names)]):
                    rows = named[named["images"].isin(["0", count])]
                    scale, digits = (1.0, 3) if value in IN_NATS else (100.0, 1)
                    text = cost_table(rows, value, names, list(steps), scale, digits)
                    parts.append(f"**{kind}**, {count} calibration images, {heading}\n\n{text}")
    return "\n\n".join([*parts, *not_possible(table)])


def draw_by_cost(study: Study, table: pd.DataFrame, chosen: Chosen, path: Path) -> None:
    """A panel for each set of parents and number of images: accuracy against seconds."""
    panels: dict[str, pd.DataFrame] = {}
    steps = {name: step for own in chosen.values() for name, step in own.items()}
    named = with_names(table, steps)
    for kind, names in _kinds(study, table).items():
        for name, title in names.items():
            own = named[named["set"] == name]
            panels |= {
                f"{kind}: {title}, {count} images": own[own["images"].isin(["0", count])] for count in _counts(own)
            }
    draw_costs(panels, list(steps), path)


def with_names(table: pd.DataFrame, steps: Mapping[str, Step]) -> pd.DataFrame:
    """The rows of some steps, which `step` names as the factor does; equal steps have the same rows."""
    return pd.concat([table[table["settings"] == step.described].assign(step=name) for name, step in steps.items()])


def _kinds(study: Study, table: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Kind of parents -> name -> title, of the sets of which there are rows."""
    found: dict[str, dict[str, str]] = {}
    for name, family in study.parents.items():
        if name in set(table["set"]):
            found.setdefault(family.real[0].kind, {})[name] = family.title
    return found


def _counts(table: pd.DataFrame) -> Sequence[str]:
    """The numbers of calibration images in a table; 0 alone where nothing has seen any."""
    found = sorted(set(table["images"]), key=int)
    return [count for count in found if count != "0"] or found
