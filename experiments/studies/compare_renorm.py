"""Every method of renormalisation on the real pairs, with the same matching: accuracy of the child.

    python -m experiments run compare_renorm --threads 1

Seconds a child; one thread.
"""

from __future__ import annotations

from experiments.lib.layouts import BOTH, by_factor, draw_by_factor
from experiments.lib.parents.families import sets
from experiments.lib.steps import Fusion, Step
from experiments.lib.study import Study

METHODS = ("none", "data-free", "rescale", "repair", "reset", "augmented")


def _methods(criterion: str) -> dict[str, Step]:
    return {
        method: Fusion({"criterion": criterion}, renorm=method, needs="BatchNorm" if method in METHODS[4:] else "all")
        for method in METHODS
    }


STUDY = Study(
    "compare_renorm",
    __doc__,
    sets("simplenet", "resnet20-8-1-8-2", "resnet20-8-1-8-3", "resnet20-8-2-8-3", "resnet20-1-4", "resnet56-3-5"),
    {f"matched by {criterion}": _methods(criterion) for criterion in ("activations", "weights")},
    by_factor,
    draw_by_factor,
    columns=BOTH,
)
