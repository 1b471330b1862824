"""What calibration images are worth, to match and to reset BatchNorm, and what else may follow a merge.

    python experiments/ablate_calibration.py [--sets NAME ...] [--processes N] [--csv FILE] [--plot FILE]

1,297 images are all of digits, which leaves none to hold out; "all" are 900 of digits and 2,000 of CIFAR-10.
Without any image the parents are matched by weights, and the statistics are those that the weights tell.
"""

from __future__ import annotations

import sys

from ablation import Ablation, Setting, main

COUNTS = (300, 100, 30, 10, 2)
DIGITS, REAL = ("digits", "digits-skewed"), ("resnet20",)
NO_IMAGES = {"criterion": "weights", "renorm": "data-free"}

ABLATION = Ablation(
    "ablate_calibration",
    __doc__,
    {
        "images": {
            "1297": Setting(images=1297, only=DIGITS),
            "8000": Setting(images=8000, only=REAL),
            "2000": Setting(only=REAL),
            "900": Setting(only=DIGITS),
            **{str(count): Setting(images=count) for count in COUNTS},
            "0": Setting(NO_IMAGES, images=0),
        },
        "images to match, reset from all": {
            "all": Setting(),
            **{str(count): Setting(match=count) for count in COUNTS},
        },
        "images to reset, matched from all": {
            "all": Setting(),
            **{str(count): Setting(reset=count) for count in COUNTS},
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
