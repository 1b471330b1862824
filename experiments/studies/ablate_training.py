"""What the parents' width, depth and training do to the child.

    python -m experiments run ablate_training --seeds 0,1,2,3,4 --threads 1

At most 0.6 CPU seconds a child, and 7 minutes for 140 parents; one thread.
"""

from __future__ import annotations

from experiments.lib.layouts import BESIDE, by_factor, draw_by_factor
from experiments.lib.measure import BESIDE as MEASURED
from experiments.lib.parents.families import families
from experiments.lib.parents.trained import Training, thin_resnet
from experiments.lib.steps import Fusion
from experiments.lib.study import Study

BLOCKS = (1, 2, 3, 5)


def _trained(**settings: float) -> Fusion:
    return Fusion(training=Training(settings=settings))


STUDY = Study(
    "ablate_training",
    __doc__,
    families("digits"),
    {
        "width": {
            "1": Fusion(),
            **{str(w): Fusion(training=Training((f"digits_resnet(width={w})",))) for w in (0.25, 0.5, 2)},
        },
        "depth, at half width": {
            str(6 * blocks + 2): Fusion(training=Training((thin_resnet(blocks),))) for blocks in BLOCKS
        },
        "weight decay": {"0.0005": Fusion(), **{str(d): _trained(weight_decay=d) for d in (0.0, 0.005, 0.05)}},
        "learning rate": {"0.2": Fusion(), **{str(r): _trained(learning_rate=r) for r in (0.02, 0.05, 0.4)}},
    },
    by_factor,
    draw_by_factor,
    measures=MEASURED,
    columns=BESIDE,
)
