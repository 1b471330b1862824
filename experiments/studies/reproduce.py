"""The published table, and ours beside it: ResNet18 pairs fused by optimal transport on DepGraph's groups.

    python -m experiments run reproduce --distil --threads 1

Minutes a pair, and an hour of distilling for each of full width; one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.lib.layouts import BOTH, draw_by_cost, not_possible
from experiments.lib.parents.families import sets
from experiments.lib.steps import Step
from experiments.lib.study import Chosen, Study
from experiments.lib.tables import Estimate, markdown
from experiments.studies.ablate_child import STEPS

# Set -> child by activations, by weights, and the parents; per cent of the test images.
PUBLISHED = {
    "cifar10-resnet18": "92.16 / 91.80 of 94.99 / 94.76",
    "cifar100-resnet18": "63.11 / 60.44 of 75.88 / 75.72",
}
BEST = "best without refit"
# Our best without refit is the one of these whose child is best on held-out training images, for each pair by itself;
# its seconds are those of all.
CANDIDATES = {
    "matched, reset": "default",
    "matched softly, reset": "sinkhorn 0.1",
    "matched as searched, repair": "searched",
    "matched by group, reset": "by group",
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "parents": ("parent 1", "parent 2"),
    "ensemble": ("ensemble",),
    "naive": ("naive average",),
    "naive, reset": ("naive average, reset",),
    "OT, activations": ("depgraph-ot-activations",),
    "OT, weights": ("depgraph-ot-weights",),
    BEST: tuple(CANDIDATES),
    "refit ridge": ("ridge: clusters, second pass",),
    "refit ridge, distil 3": ("ridge, distilled for three epochs",),
    "goal best": ("goal best",),
}
FREE = ("parents", "ensemble")  # are there without any work


def tables(study: Study, table: pd.DataFrame, chosen: Chosen, published: Mapping[str, str] = PUBLISHED) -> str:
    """Accuracy on test images and on held-out training images, and seconds; and what could not be measured."""
    parts = []
    names = [name for name in study.parents if name in set(table["set"]) or _lacks(study, name)]
    for title, value, scale, digits in (
        ("Per cent of the test images", "accuracy", 100.0, 2),
        ("Per cent of held-out training images", "held_out_accuracy", 100.0, 2),
        ("Seconds", "seconds", 1.0, 1),
        ("CPU seconds", "cpu_seconds", 1.0, 1),
    ):
        in_seconds, first = value.endswith("seconds"), value == "accuracy"
        columns = {heading: steps for heading, steps in chosen.items() if not (in_seconds and heading in FREE)}
        rows = []
        for name in names:
            if _lacks(study, name):  # said once
                cells = [f"open: {_lacks(study, name)}", *[""] * (len(columns) - 1)] if first else []
            else:
                own = table[table["set"] == name]
                cells = [_cell(own, heading, steps, value, scale, digits) for heading, steps in columns.items()]
            if cells:
                rows.append([study.parents[name].title, *cells, *([published.get(name, "")] if first else [])])
        last = ["published: activations / weights of parents"] if first else []
        if rows:
            parts.append(f"**{title}**\n\n{markdown(['networks', *columns, *last], rows)}")
    return "\n\n".join([*parts, *not_possible(table)])


def _lacks(study: Study, name: str) -> str:
    return study.parents[name].real[0].lacks


def _cell(rows: pd.DataFrame, heading: str, steps: Mapping[str, Step], value: str, scale: float, digits: int) -> str:
    """What was measured of a pair in a column; nothing unless all of its steps were."""
    found = {name: _estimate(rows, step, value) for name, step in steps.items()}
    known = {name: estimate for name, estimate in found.items() if estimate is not None}
    if len(known) < len(steps):
        return ""  # never a choice among some of the candidates
    if heading != BEST:
        return " / ".join(estimate.text(scale, digits) for estimate in known.values())
    if value.endswith("seconds"):
        return f"{scale * sum(estimate.mean for estimate in known.values()):.{digits}f}"
    held_out = {name: _estimate(rows, step, "held_out_accuracy") for name, step in steps.items()}
    means = {name: estimate.mean for name, estimate in held_out.items() if estimate is not None}
    if len(means) < len(steps):
        return ""  # calibration takes all images
    best = max(means, key=means.__getitem__)
    return f"{known[best].text(scale, digits)} ({CANDIDATES[best]})"


def _estimate(rows: pd.DataFrame, step: Step, value: str) -> Estimate | None:
    values: Sequence[float] = rows[rows["settings"] == step.described][value].tolist()
    return Estimate.of(values)


STUDY = Study(
    "reproduce",
    __doc__,
    sets(
        "cifar10-resnet18", "cifar100-resnet18", "cifar10-resnet18-width16", "cifar100", "resnet20-8-1-8-2",
        "resnet20-8-1-8-3", "resnet20-8-2-8-3", "resnet20-1-4", "resnet56-3-5",
    ),
    {heading: {name: STEPS[name] for name in steps} for heading, steps in COLUMNS.items()},
    tables,
    draw_by_cost,
    columns=BOTH,
)  # fmt: skip
