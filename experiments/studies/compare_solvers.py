"""Every setting of alignment on the real pairs: accuracy of the child, and seconds.

    python -m experiments run compare_solvers --threads 1

Seconds to minutes a child; one thread. What the defaults were chosen by is held-out images and `judged`: the
disagreement with the parents' ensemble on unlabelled training images, in nats.
"""

from __future__ import annotations

from experiments.lib.layouts import BOTH, by_factor, draw_by_factor
from experiments.lib.measure import JUDGED
from experiments.lib.parents.families import sets
from experiments.lib.steps import Fusion, Step
from experiments.lib.study import Study

RUN8 = ("resnet20-8-1-8-2", "resnet20-8-1-8-3", "resnet20-8-2-8-3")
PEARSON = {"distance": "pearson"}
WEIGHTS, MIXTURE = {"criterion": "weights"}, {"criterion": "mixture"}
MOSTLY_WEIGHTS = {"criterion": "mixture", "mixture": 0.7}
SOFT = {"solver": "sinkhorn", "regularisation": 0.1}

SETTINGS: dict[str, Step] = {
    **{
        f"activations, {distance}, after, emd": Fusion({"distance": distance})
        for distance in ("best", "cosine", "pearson", "cosine-pearson", "scaled", "euclidean")
    },
    **{f"activations, pearson, {taps}, emd": Fusion({**PEARSON, "taps": taps}) for taps in ("before", "both")},
    **{
        f"activations, pearson, sinkhorn, {amount}": Fusion({**PEARSON, "solver": "sinkhorn", "regularisation": amount})
        for amount in (0.01, 0.1)
    },
    **{
        f"{criterion['criterion']}, {solver}": Fusion({**criterion, "solver": solver})
        for criterion in (WEIGHTS, MIXTURE)
        for solver in ("emd", "sinkhorn", "coordinate-descent")
    },
}


def _of_run8(settings: dict[str, object]) -> Step:
    return Fusion(settings, only=RUN8)


SOLVERS: dict[str, Step] = {
    "emd, activations": Fusion(),
    "emd, chosen by group": _of_run8({"choose": "groups"}),
    "sinkhorn 0.1, activations": _of_run8(dict(SOFT)),
    **{
        f"{solver}, weights": _of_run8({**WEIGHTS, "solver": solver})
        for solver in (
            "emd", "coordinate-descent", "spectral", "reweighted-random-walk", "ipfp", "frank-wolfe", "fused-gromov",
        )
    },
    **{
        f"{solver}, mixture": _of_run8({**MOSTLY_WEIGHTS, "solver": solver})
        for solver in ("spectral", "reweighted-random-walk", "ipfp", "frank-wolfe", "fused-gromov")
    },
    **{
        f"{solver}, mixture, from activations": _of_run8({**MOSTLY_WEIGHTS, "solver": solver, "start": "activations"})
        for solver in ("coordinate-descent", "ipfp", "frank-wolfe")
    },
    "coordinate-descent, weights, from activations": _of_run8(
        {**WEIGHTS, "solver": "coordinate-descent", "start": "activations"}
    ),
    "fused-gromov, activations": _of_run8({"solver": "fused-gromov"}),
    "sinkhorn-implicit": _of_run8({"solver": "sinkhorn-implicit"}),
}  # fmt: skip

STUDY = Study(
    "compare_solvers",
    __doc__,
    sets("simplenet", *RUN8, "resnet20-1-4", "resnet56-3-5"),
    {"setting": SETTINGS, "solver": SOLVERS},
    by_factor,
    draw_by_factor,
    JUDGED,
    {**BOTH, "judged": "judged"},
)
