"""What the settings of the matching are worth: criterion, distance, taps, solver and its regularisation.

python -m experiments.studies.ablate_matching
"""

from __future__ import annotations

import sys

from experiments.lib.ablation import Ablation, Setting, main

DIGITS = ("digits", "digits-skewed")
COSINE = {"distance": "cosine"}
WEIGHTS = {"criterion": "weights"}
MIXTURE = {"criterion": "mixture", "mixture": 0.7}

ABLATION = Ablation(
    "ablate_matching",
    __doc__,
    {
        "criterion": {
            "activations": Setting(),
            "weights": Setting(WEIGHTS),
            **{f"mixture, {share}": Setting({"criterion": "mixture", "mixture": share}) for share in (0.2, 0.5, 0.8)},
        },
        "distance": {
            "best": Setting(),
            **{
                name: Setting({"distance": name})
                for name in ("cosine", "pearson", "cosine-pearson", "scaled", "euclidean")
            },
        },
        "taps, distance cosine": {
            "after": Setting(COSINE),
            **{taps: Setting({**COSINE, "taps": taps}) for taps in ("before", "both")},
        },
        "solver": {
            "emd, activations": Setting(only=DIGITS),
            "unbalanced, activations": Setting({"solver": "unbalanced"}, only=DIGITS),
            "fused-gromov, activations": Setting({"solver": "fused-gromov"}, only=DIGITS),
            "sinkhorn-implicit": Setting({"solver": "sinkhorn-implicit"}, only=("digits",)),
            **{
                f"{solver}, mixture": Setting({**MIXTURE, "solver": solver}, only=DIGITS)
                for solver in ("coordinate-descent", "frank-wolfe", "spectral", "reweighted-random-walk", "ipfp")
            },
            **{
                f"{solver}, weights": Setting({**WEIGHTS, "solver": solver}, only=DIGITS)
                for solver in ("coordinate-descent", "frank-wolfe", "spectral", "reweighted-random-walk", "ipfp")
            },
        },
        "regularisation of sinkhorn, distance cosine": {
            "0": Setting(COSINE),
            **{
                str(amount): Setting({**COSINE, "solver": "sinkhorn", "regularisation": amount})
                for amount in (0.01, 0.1, 0.3, 1.0, 3.0)
            },
        },
    },
)

if __name__ == "__main__":
    sys.exit(main(ABLATION))
