"""Fusing digits parents of unequal widths: a 1.5-wide and a 1-wide residual network, to either width.

    python -m experiments run widths_digits --threads 1

Seconds a child, a minute to train all pairs; one thread.
"""

from __future__ import annotations

from experiments.lib.layouts import BESIDE, by_factor, draw_by_factor
from experiments.lib.measure import BESIDE as MEASURED
from experiments.lib.parents.families import families
from experiments.lib.steps import Baseline, Fusion, Step
from experiments.lib.study import Study

RECIPES: dict[str, dict[str, object]] = {
    "emd": {},
    "sinkhorn": {"solver": "sinkhorn", "regularisation": 0.1},
    "unbalanced": {"solver": "unbalanced"},
    "weights": {"criterion": "weights"},
}


def _to_width_of(number: int) -> dict[str, Step]:
    naive: dict[str, Step] = {"naive, reset": Baseline("naive_to_width", {"number": number})}
    return naive | {name: Fusion({**recipe, "width_of": number}) for name, recipe in RECIPES.items()}


STUDY = Study(
    "widths_digits",
    __doc__,
    families("digits-widths", "digits-widths-same", "digits-widths-folds"),
    {
        "to 1.5": {**_to_width_of(1), "emd, refitted": Fusion({"refit": "ridge", "width_of": 1})},
        "to 1": _to_width_of(2),
        "parent": {
            "1.5": Baseline("parent", {"number": 1}, images=False),
            "1": Baseline("parent", {"number": 2}, images=False),
        },
    },
    by_factor,
    draw_by_factor,
    MEASURED,
    BESIDE,
)
