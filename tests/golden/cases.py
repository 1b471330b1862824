"""The golden cases: which parents are fused by which recipe, and what the command line is asked for.

Every solver, criterion, renorm method, refit method and kind of network is in one of them; images and steps are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .commands import COMMANDS


@dataclass(frozen=True)
class Fusion:
    """Parents of `networks.PARENTS`, settings beside `QUICK`, and what else the library is given."""

    parents: str
    settings: dict[str, Any]
    labels: tuple[tuple[int, ...], ...] | None = None
    template: str | None = None
    training_images: int = 0


QUICK = {"calibration": 128, "batch_size": 64}
MATCH = {"refit": "none", "distance": "scaled"}  # match, average, reset
PLAIN = {"refit": "none"}
# Fewer images would be one batch, of which no step is taken.
RIDGE = {"refit": "ridge", "refit_steps": 6, "calibration": 320}

HALVES: dict[str, Any] = {"labels": ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)), "template": "digits_resnet(width=1.25)"}

SOLVERS = {
    "emd": Fusion("digits", MATCH),
    "emd, best distance on drawn parents": Fusion("vgg", PLAIN),
    "emd, best distance": Fusion("digits", {**PLAIN, "calibration": 64}),
    "emd, weights": Fusion("digits", {**PLAIN, "criterion": "weights", "restarts": 3}),
    "emd, mixture, taps both": Fusion(
        "digits", {**MATCH, "criterion": "mixture", "mixture": 0.3, "taps": "both", "restarts": 2}
    ),
    "sinkhorn, euclidean": Fusion("digits", {**MATCH, "solver": "sinkhorn", "distance": "euclidean"}),
    "sinkhorn, weights": Fusion("vgg", {**PLAIN, "solver": "sinkhorn", "criterion": "weights"}),
    "unbalanced, cosine": Fusion("digits", {**MATCH, "solver": "unbalanced", "distance": "cosine"}),
    "coordinate descent": Fusion(
        "digits", {**PLAIN, "solver": "coordinate-descent", "criterion": "weights", "start": "spectral"}
    ),
    "coordinate descent from activations": Fusion(
        "skewed",
        {**MATCH, "solver": "coordinate-descent", "criterion": "weights", "start": "activations", "taps": "before"},
    ),
    "spectral": Fusion("vgg", {**PLAIN, "solver": "spectral", "criterion": "weights", "iterations": 30}),
    "random walk": Fusion("vgg", {**PLAIN, "solver": "reweighted-random-walk", "criterion": "weights"}),
    "ipfp": Fusion("digits", {**PLAIN, "solver": "ipfp", "criterion": "weights", "iterations": 20}),
    "frank-wolfe": Fusion("residual", {**PLAIN, "solver": "frank-wolfe", "criterion": "weights"}),
    "frank-wolfe from spectral": Fusion(
        "vgg", {**PLAIN, "solver": "frank-wolfe", "criterion": "weights", "start": "spectral"}
    ),
    "fused gromov, pearson": Fusion("digits", {**MATCH, "solver": "fused-gromov", "distance": "pearson"}),
    "implicit sinkhorn": Fusion(
        "digits", {**PLAIN, "solver": "sinkhorn-implicit", "start": "identity", "iterations": 20}
    ),
    "cca": Fusion("digits", {**PLAIN, "solver": "cca"}),
    "zip-it": Fusion("digits", {**PLAIN, "solver": "zip-it", "taps": "before"}),
    "identity": Fusion("same start", {**PLAIN, "solver": "identity", "criterion": "weights"}),
    "chosen by groups": Fusion(
        "vgg", {**PLAIN, "choose": "groups", "criterion": "weights", "restarts": 2, "calibration": 64}
    ),
}
RENORMS = {
    "renorm none": Fusion("digits", {**MATCH, "renorm": "none"}),
    "renorm repair": Fusion("digits", {**MATCH, "renorm": "repair"}),
    "renorm rescale": Fusion("without norm", {**MATCH, "renorm": "rescale"}),
    "renorm data-free": Fusion("digits", {**MATCH, "renorm": "data-free"}),
    "renorm of augmented images": Fusion("digits", {**MATCH, "renorm": "reset", "augment_statistics": True}),
    "parents renewed": Fusion("skewed", {**MATCH, "parents_renorm": "reset"}),
}
REFITS = {
    "ridge": Fusion("digits", RIDGE),
    "ridge, no second pass": Fusion("digits", {**RIDGE, "refit_steps": 0}),
    "ridge, matched targets, not augmented": Fusion("digits", {**RIDGE, "targets": "matched", "augment": False}),
    "regmean": Fusion("digits", {**MATCH, "refit": "regmean"}),
    "least squares": Fusion("digits", {**MATCH, "refit": "least-squares"}),
    "joint head, skewed parents": Fusion("skewed", {**RIDGE, "joint_head": "always"}),
    "labelled head, skewed parents": Fusion("skewed", {**RIDGE, "labelled": 64}),
    "goal best": Fusion("vgg", {"goal": "best", "refit_steps": 2, "calibration": 320}),
    "distil": Fusion("digits", {**MATCH, "distil": 1}, training_images=200),
    "ridge, then fine-tuning": Fusion("digits", {**RIDGE, "finetune": 1}, training_images=200),
    "distil, halves": Fusion("halves", {**RIDGE, "distil": 1}, **HALVES, training_images=200),
}
MERGES = {
    "shares": Fusion("digits", {**MATCH, "weights": [0.7, 0.3]}),
    "shares by stage": Fusion("skewed", {**MATCH, "weights_by": "stage"}),
    "shares by group": Fusion("vgg", {**MATCH, "weights_by": "group"}),
    "fisher": Fusion("digits", {**MATCH, "average": "fisher", "seed": 3}),
    "three parents": Fusion("three", {**MATCH, "reference": 2, "order": 3, "weights": [0.5, 0.3, 0.2]}),
    "three parents, ridge": Fusion("three drawn", RIDGE),
    "universe": Fusion("three", {**MATCH, "universe": True, "order": 2, "restarts": 2}),
    "universe, weights": Fusion("three drawn", {**PLAIN, "universe": True, "criterion": "weights", "restarts": 2}),
    "partial merging": Fusion("digits", {**MATCH, "keep_worst": 0.25}),
    "partial merging, ridge": Fusion("residual", {**RIDGE, "keep_worst": 0.5}),
    "first stage apart": Fusion("digits", {**MATCH, "keep_first": 1}),
    "last stage apart": Fusion("digits", {**MATCH, "keep_last": 1}),
    "unequal widths": Fusion("unequal", PLAIN),
    "unequal widths, narrow child": Fusion("unequal", {**MATCH, "width_of": 2, "masses": "free"}),
    "unequal widths, ridge": Fusion("unequal", RIDGE),
    "halves": Fusion("halves", RIDGE, **HALVES),
    "halves, averaged": Fusion("halves", MATCH, **HALVES),
}
NETWORKS = {
    "vgg": Fusion("vgg", RIDGE),
    "mobile": Fusion("mobile", RIDGE),
    "grouped": Fusion("grouped", RIDGE),
    "dense": Fusion("dense", RIDGE),
    "shared weights": Fusion("shared", {"refit_steps": 6, "calibration": 320}),
    "channel shuffle": Fusion("shuffle", {"refit_steps": 6, "calibration": 320}),
    "one-dimensional": Fusion("one-dimensional", RIDGE),
    "without norm": Fusion("without norm", RIDGE),
    "transformer": Fusion("transformer", PLAIN),
    "transformer, weights, repair": Fusion("transformer", {**PLAIN, "criterion": "weights", "renorm": "repair"}),
    "one output": Fusion("one output", RIDGE),
}
FUSIONS: dict[str, Fusion] = {**SOLVERS, **RENORMS, **REFITS, **MERGES, **NETWORKS}
NAMES = (*FUSIONS, *COMMANDS)

# One for each stage, for every run of the tests: seconds together.
FAST = (
    "emd, best distance", "emd, weights", "cca", "renorm repair", "ridge", "fisher", "universe", "partial merging",
    "three parents", "unequal widths", "halves, averaged", "mobile", "transformer", "refused inputs",
)  # fmt: skip
