"""Parents of different knowledge on digits: the shipped pairs, and how their training was chosen on held-out images.

    python -m experiments run skewed_digits --threads 1

Seconds a child, half a minute to train ten pairs; one thread.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.lib.layouts import BESIDE, by_factor, draw_by_factor
from experiments.lib.measure import BESIDE as MEASURED
from experiments.lib.parents.families import FAMILIES, families
from experiments.lib.steps import Baseline, Fusion
from experiments.lib.study import Study

FOLDS = ("digits-skewed-folds",)
DEFAULT = {"refit": "auto"}


def _trained(**changed: object) -> Fusion:
    """The child of parents that are trained in another way, on the same four fifths of the training images."""
    own = FAMILIES[FOLDS[0]].training
    network = f"digits_resnet(width={changed.pop('width', 1.25)})"
    training = replace(own, architectures=(network,), settings={**own.settings, **changed})
    return Fusion(DEFAULT, training=training, only=FOLDS)


STUDY = Study(
    "skewed_digits",
    __doc__,
    families("digits-shipped", *FOLDS),
    {
        "network": {
            "naive average, reset": Baseline("naive_reset"),
            "parent 1": Baseline("parent", {"number": 1}, images=False),
            "parent 2": Baseline("parent", {"number": 2}, images=False),
            "ensemble": Baseline("ensemble_as_it_is", images=False),
            "child, merged": Fusion(),
            "child, default settings": Fusion(DEFAULT),
        },
        "epochs": {"15": Fusion(DEFAULT, only=FOLDS), **{str(n): _trained(epochs=n) for n in (10, 20, 30)}},
        "weight decay": {
            "0.02": Fusion(DEFAULT, only=FOLDS), **{str(d): _trained(weight_decay=d) for d in (0.0005, 0.005, 0.05)},
        },
        "width": {"1.25": Fusion(DEFAULT, only=FOLDS), **{str(w): _trained(width=w) for w in (1.0, 1.5, 2.0)}},
    },
    by_factor,
    draw_by_factor,
    MEASURED,
    BESIDE,
)  # fmt: skip
