"""What the settings of the matching are worth: criterion, distance, taps, solver and its regularisation.

    python -m experiments run ablate_matching --sets digits digits-skewed --seeds 0,1,2,3,4 --threads 1

Seconds a child; one thread.
"""

from __future__ import annotations

from experiments.lib.layouts import BOTH, by_factor, draw_by_factor
from experiments.lib.parents.families import families
from experiments.lib.steps import Fusion
from experiments.lib.study import Study

DIGITS = ("digits", "digits-skewed")
COSINE = {"distance": "cosine"}
WEIGHTS = {"criterion": "weights"}
MIXTURE = {"criterion": "mixture", "mixture": 0.7}

STUDY = Study(
    "ablate_matching",
    __doc__,
    families("digits", "digits-skewed", "resnet20"),
    {
        "criterion": {
            "activations": Fusion(),
            "weights": Fusion(WEIGHTS),
            **{f"mixture, {share}": Fusion({"criterion": "mixture", "mixture": share}) for share in (0.2, 0.5, 0.8)},
        },
        "distance": {
            "best": Fusion(),
            **{
                name: Fusion({"distance": name})
                for name in ("cosine", "pearson", "cosine-pearson", "scaled", "euclidean")
            },
        },
        "taps, distance cosine": {
            "after": Fusion(COSINE),
            **{taps: Fusion({**COSINE, "taps": taps}) for taps in ("before", "both")},
        },
        "solver": {
            "emd, activations": Fusion(only=DIGITS),
            "unbalanced, activations": Fusion({"solver": "unbalanced"}, only=DIGITS),
            "fused-gromov, activations": Fusion({"solver": "fused-gromov"}, only=DIGITS),
            "sinkhorn-implicit": Fusion({"solver": "sinkhorn-implicit"}, only=("digits",)),
            **{
                f"{solver}, mixture": Fusion({**MIXTURE, "solver": solver}, only=DIGITS)
                for solver in ("coordinate-descent", "frank-wolfe", "spectral", "reweighted-random-walk", "ipfp")
            },
            **{
                f"{solver}, weights": Fusion({**WEIGHTS, "solver": solver}, only=DIGITS)
                for solver in ("coordinate-descent", "frank-wolfe", "spectral", "reweighted-random-walk", "ipfp")
            },
        },
        "regularisation of sinkhorn, distance cosine": {
            "0": Fusion(COSINE),
            **{
                str(amount): Fusion({**COSINE, "solver": "sinkhorn", "regularisation": amount})
                for amount in (0.01, 0.1, 0.3, 1.0, 3.0)
            },
        },
    },
    by_factor,
    draw_by_factor,
    columns=BOTH,
)
