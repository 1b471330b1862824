"""What calibration images are worth, to match and to reset BatchNorm, and what else may follow a merge.

    python experiments/ablate_calibration.py [--sets NAME ...] [--processes N] [--csv FILE] [--plot FILE]

20,000 images are all 1,297 of digits, which leaves none to hold out. Without any image the parents are matched by
weights and the statistics are those that the weights tell.
"""

from __future__ import annotations

import sys

from ablation import Ablation, Setting, main

MOST = 20000
COUNTS = (300, 100, 30, 10, 2)
DIGITS, REAL = ("digits", "digits-skewed"), ("resnet20",)
NO_IMAGES = {"criterion": "weights", "renorm": "data-free"}

ABLATION = Ablation(
    "ablate_calibration",
    __doc__,
    {
        "images": {
            str(MOST): Setting(images=MOST),
            "8000": Setting(images=8000, only=REAL),
            "2000": Setting(only=REAL),
            "900": Setting(only=DIGITS),
            **{str(count): Setting(images=count) for count in COUNTS},
            "0": Setting(NO_IMAGES, images=0),
        },
        f"images to match, reset from {MOST}": {
            str(MOST): Setting(images=MOST),
            **{str(count): Setting(images=count, reset=MOST) for count in COUNTS},
        },
        f"images to reset, matched from {MOST}": {
            str(MOST): Setting(images=MOST),
            **{str(count): Setting(images=MOST, reset=count) for count in COUNTS},
        },
        "after the merge": {
            "reset": Setting(),
            "none": Setting({"renorm": "none"}),
            "rescale": Setting({"renorm": "rescale"}),
            "repair": Setting({"renorm": "repair"}),
            "data-free": Setting({"renorm": "data-free"}),
            "reset, images augmented": Setting({"augment_statistics": True}),
        },
    },
)

if __name__ == "__main__":
    sys.exit(main(ABLATION))
