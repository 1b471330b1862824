"""What calibration images are worth, to match and to reset BatchNorm, and what else may follow a merge.

    python -m experiments.studies.ablate_calibration --sets digits digits-skewed --threads 1

1,297 images are all of digits, which leaves none to hold out; "all" are 900 of digits and 2,000 of CIFAR-10.
Without any image the parents are matched by weights, and the statistics are those that the weights tell.

Found (500 test images of digits, means with 95 % intervals over 10 pairs; one thread of an AMD EPYC with AVX512-bf16).
Parents of one knowledge first, then parents of different knowledge:

- A hundred images do what all 1,297 do: 82.6 to 82.1 and 66.3 to 67.5 (differences 0.5 ± 2.4 and -1.2 ± 2.8). Ten
  lose 5.7 ± 3.5 and 7.1 ± 4.3, two lose 35.4 ± 6.9 and 27.9 ± 10.0.
- Matching and reset need about equally many: ten for the matching alone lose 6.1 ± 2.9 and 4.9 ± 3.6, ten for the reset
  alone 5.8 ± 3.0 and 5.4 ± 2.8. With two the reset loses more, 27.4 ± 9.8 and 23.4 ± 10.4.
- Without any image the child has 55.9 ± 8.3 and 31.2 ± 7.9: fetch ten.
- Without reset nothing is left of it (21.9 and 17.7). Repair is no better where parents know the same (0.3 ± 0.6) and
  worse where they do not (-14.7 ± 7.1), augmented statistics lose 1.8 ± 2.2 and 2.9 ± 0.7.
"""

from __future__ import annotations

import sys

from experiments.lib.ablation import Ablation, Setting, main

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
