"""What the number of parents and their shares do to the child.

    python -m experiments run ablate_parents --sets digits digits-skewed --seeds 0,1,2,3,4 --threads 1

At most 4 CPU seconds a child; one thread.
"""

from __future__ import annotations

from experiments.lib.layouts import BESIDE, by_factor, draw_by_factor
from experiments.lib.measure import BESIDE as MEASURED
from experiments.lib.parents.families import families
from experiments.lib.steps import Fusion
from experiments.lib.study import Study

DIGITS = ("digits", "digits-skewed")
NUMBERS = (2, 3, 4, 6, 8)
SHARES = (0.0, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 1.0)

STUDY = Study(
    "ablate_parents",
    __doc__,
    families("digits", "digits-skewed", "resnet20"),
    {
        "parents": {str(number): Fusion(parents=number, only=DIGITS) for number in NUMBERS},
        "parents, matched through a universe": {
            str(number): Fusion({"universe": True}, parents=number, only=DIGITS) for number in NUMBERS
        },
        "share of the second parent": {
            "0.5": Fusion(),
            **{f"{share:g}": Fusion({"weights": (round(1.0 - share, 9), share)}) for share in SHARES},
        },
    },
    by_factor,
    draw_by_factor,
    measures=MEASURED,
    columns=BESIDE,
)
