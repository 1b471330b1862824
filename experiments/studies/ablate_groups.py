"""What tying the skip connections is worth: channel groups against layers taken one by one.

    python -m experiments run ablate_groups --sets digits digits-deep --threads 1

At most 0.5 CPU seconds a child; one thread.
"""

from __future__ import annotations

from experiments.lib.layouts import BOTH, by_factor, draw_by_factor
from experiments.lib.parents.families import families
from experiments.lib.steps import Fusion, Step
from experiments.lib.study import Study

WEIGHTS = {"criterion": "weights"}
VARIANTS = {
    "channel groups": "groups",
    "layers one by one, own outputs": "layers",
    "layers one by one, end of the block": "streams",
    "inside the blocks only": "inside",
    "streams only": "on streams",
    "nothing": "nothing",
}


def _steps(recipe: dict[str, str]) -> dict[str, Step]:
    return {
        name: Fusion({} if variant == "nothing" else recipe, tied=variant)
        for name, variant in VARIANTS.items()
        if not (recipe and variant == "streams")  # weights are watched nowhere
    }


STUDY = Study(
    "ablate_groups",
    __doc__,
    families("digits", "digits-deep", "resnet20"),
    {"matched by activations": _steps({}), "matched by weights": _steps(WEIGHTS)},
    by_factor,
    draw_by_factor,
    columns=BOTH,
)
