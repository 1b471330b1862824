"""What calibration images are worth, to match and to reset BatchNorm, and what else may follow a merge.

    python -m experiments run ablate_calibration --sets digits digits-skewed --threads 1

At most 0.5 CPU seconds a child; one thread.
"""

from __future__ import annotations

from experiments.lib.layouts import BOTH, by_factor, draw_by_factor
from experiments.lib.parents.families import families
from experiments.lib.steps import Fusion
from experiments.lib.study import Study

COUNTS = (300, 100, 30, 10, 2)
DIGITS, REAL = ("digits", "digits-skewed"), ("resnet20",)
NO_IMAGES = {"criterion": "weights", "renorm": "data-free"}

STUDY = Study(
    "ablate_calibration",
    __doc__,
    families("digits", "digits-skewed", "resnet20"),
    {
        "images": {
            "1297": Fusion(count=1297, only=DIGITS),
            "8000": Fusion(count=8000, only=REAL),
            "2000": Fusion(only=REAL),
            "900": Fusion(only=DIGITS),
            **{str(count): Fusion(count=count) for count in COUNTS},
            "0": Fusion(NO_IMAGES, count=0),
        },
        "images to match, reset from all": {
            "all": Fusion(),
            **{str(count): Fusion(match=count) for count in COUNTS},
        },
        "images to reset, matched from all": {
            "all": Fusion(),
            **{str(count): Fusion(reset=count) for count in COUNTS},
        },
        "after the merge": {
            "reset": Fusion(),
            "none": Fusion({"renorm": "none"}),
            "rescale": Fusion({"renorm": "rescale"}),
            "repair": Fusion({"renorm": "repair"}),
            "data-free": Fusion({"renorm": "data-free"}),
            "reset, images augmented": Fusion({"augment_statistics": True}),
        },
    },
    by_factor,
    draw_by_factor,
    columns=BOTH,
)
