"""REPAIR on networks without BatchNorm: how much of what a matched average loses its renormalisation gives back.

    python -m experiments run plain_vgg --threads 2

Seconds a child, minutes to train a pair; two threads.
"""

from __future__ import annotations

import pandas as pd

from experiments.lib.layouts import BESIDE, by_factor, draw_by_factor, estimated
from experiments.lib.measure import BESIDE as MEASURED
from experiments.lib.parents.families import families
from experiments.lib.steps import Fusion, Step
from experiments.lib.study import Chosen, Study

SOLVERS: dict[str, dict[str, object]] = {"emd": {}, "sinkhorn": {"solver": "sinkhorn", "regularisation": 0.1}}
METHODS = ("none", "data-free", "rescale", "repair")
VGG = "digits-vgg"


def recovered(parents: float, matched: float, repaired: float) -> float:
    """Share of the gap between the matched child and the parents' mean that is closed."""
    return (repaired - matched) / (parents - matched)


def tables(study: Study, table: pd.DataFrame, chosen: Chosen) -> str:
    """The table of each solver, and the share of the gap that REPAIR recovers of the means over all pairs."""
    lines = [by_factor(study, table, chosen)]
    for solver, steps in chosen.items():
        if {"none", "repair"} <= steps.keys():
            matched, repaired = (estimated(table, VGG, steps[name], "accuracy") for name in ("none", "repair"))
            parents = estimated(table, VGG, steps["none"], "parents_accuracy")
            if matched is not None and repaired is not None and parents is not None:
                share = recovered(parents.mean, matched.mean, repaired.mean)
                lines.append(f"REPAIR recovers {100 * share:.1f} % of the gap to the parents' mean, {solver}.")
    return "\n\n".join(lines)


def _methods(solver: dict[str, object]) -> dict[str, Step]:
    return {method: Fusion({**solver, "renorm": method}) for method in METHODS}


STUDY = Study(
    "plain_vgg",
    __doc__,
    families(VGG),
    {f"matched by {solver}, then": _methods(settings) for solver, settings in SOLVERS.items()},
    tables,
    draw_by_factor,
    MEASURED,
    BESIDE,
)
