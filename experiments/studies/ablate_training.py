"""What the parents' width, depth and training do to the child.

    python -m experiments.studies.ablate_training

Every parent is trained here, on all digits (20 epochs, learning rate 0.2, weight decay 0.0005 where nothing else is
said), and kept.

Found with `--seeds 0,1,2,3,4 --threads 1` (per cent of the test images, means with 95 % intervals; BatchNorm reset; at
most 0.6 CPU seconds a child, and 7 minutes for 140 parents, one thread of an AMD EPYC with AVX512-bf16): width decides
most. Children of half the width lose 18.3 ± 7.1, of a quarter 51.7 ± 18.1, and of twice the width gain 12.7 ± 10.3,
while the parents change by less than 0.5, but for a quarter (94.2). Depth costs: from 8 layers to 32, at half width,
28.4 ± 6.4. Weight decay a hundred times as strong as usual gives parents as good as before (99.3) whose child has 97.9
± 0.4 instead of 83.4 ± 10.4; ten times as strong 90.3 ± 4.6. Learning rates from 0.02 to 0.4 give children of 75 to 86
per cent, which chance explains.
"""

from __future__ import annotations

import sys

from experiments.lib.ablation import SHOWN_BESIDE, Ablation, Setting, main
from experiments.lib.parents.trained import Training, thin_resnet

BLOCKS = (1, 2, 3, 5)


def _trained(**settings: float) -> Setting:
    return Setting(training=Training(settings=settings))


ABLATION = Ablation(
    "ablate_training",
    __doc__,
    {
        "width": {
            "1": Setting(),
            **{str(w): Setting(training=Training(f"digits_resnet(width={w})")) for w in (0.25, 0.5, 2)},
        },
        "depth, at half width": {
            str(6 * blocks + 2): Setting(training=Training(thin_resnet(blocks))) for blocks in BLOCKS
        },
        "weight decay": {"0.0005": Setting(), **{str(d): _trained(weight_decay=d) for d in (0.0, 0.005, 0.05)}},
        "learning rate": {"0.2": Setting(), **{str(r): _trained(learning_rate=r) for r in (0.02, 0.05, 0.4)}},
    },
    families=("digits",),
    shown=SHOWN_BESIDE,
)

if __name__ == "__main__":
    sys.exit(main(ABLATION))
