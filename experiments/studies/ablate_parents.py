"""What the number of parents and their shares do to the child.

python -m experiments.studies.ablate_parents
"""

from __future__ import annotations

import sys

from experiments.lib.ablation import SHOWN_BESIDE, Ablation, Setting, main

DIGITS = ("digits", "digits-skewed")
NUMBERS = (2, 3, 4, 6, 8)
SHARES = (0.0, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 1.0)

ABLATION = Ablation(
    "ablate_parents",
    __doc__,
    {
        "parents": {str(number): Setting(parents=number, only=DIGITS) for number in NUMBERS},
        "parents, matched through a universe": {
            str(number): Setting({"universe": True}, parents=number, only=DIGITS) for number in NUMBERS
        },
        "share of the second parent": {
            "0.5": Setting(),
            **{f"{share:g}": Setting({"weights": (round(1.0 - share, 9), share)}) for share in SHARES},
        },
    },
    shown=SHOWN_BESIDE,
)

if __name__ == "__main__":
    sys.exit(main(ABLATION))
