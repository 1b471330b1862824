"""Every step of a fusion alone and together: what each gives, and what it costs.

    python -m experiments run ablate_child --threads 1

Seconds to minutes a cell; one thread.
"""

from __future__ import annotations

from depfuse.recipe.presets import preset
from experiments.lib.layouts import by_cost, draw_by_cost
from experiments.lib.measure import AGREEMENT
from experiments.lib.parents.families import sets
from experiments.lib.steps import Baseline, Fusion, Step
from experiments.lib.study import Study

RIDGE = {"refit": "ridge"}
FIRST_PASS = {**RIDGE, "refit_steps": 0}
MATCHED_FIRST_PASS = {**FIRST_PASS, "targets": "matched"}
UNIVERSE = {"universe": True}
SOFT = {"solver": "sinkhorn", "regularisation": 0.1}
# What 100 trials of `depfuse tune` on ResNet20 run8-1 + run8-2 found, without refit (experiments/studies/tune.py).
SEARCHED = {
    "criterion": "mixture",
    "mixture": 0.22,
    "distance": "cosine",
    "solver": "sinkhorn",
    "regularisation": 1.0,
    "renorm": "repair",
    "augment_statistics": True,
}
BY_GROUP = {"choose": "groups"}
LABELLED = {"labelled": 500}
DISTIL = {"distil": 1}

COMPARED: dict[str, Step] = {
    **{f"parent {n}": Baseline("parent", {"number": n}, max(n, 2), images=False) for n in range(1, 6)},
    "ensemble": Baseline("ensemble_as_it_is", images=False),
    "ensemble, statistics renewed": Baseline("ensemble_renewed"),
    "ensemble, one head without labels": Baseline("ensemble_with_joint_head"),
    "ensemble, one head from 500 labels": Baseline("ensemble_with_joint_head", {"labelled": 500}),
    "naive average": Baseline("naive", images=False),
    "naive average, reset": Baseline("naive_reset"),
    "best parent, head refitted": Baseline("best_parent"),
    "best parent, head refitted, distilled": Baseline("best_parent", {"epochs": 1}, long="--distil"),
}
PUBLISHED: dict[str, Step] = {
    name: Fusion(preset(name).settings) for name in ("depgraph-ot-activations", "depgraph-ot-weights")
}
MERGED: dict[str, Step] = {
    "matched": Fusion({"renorm": "none"}),
    "matched, reset": Fusion(),
    "matched, rescale": Fusion({"renorm": "rescale"}),
    "matched, repair": Fusion({"renorm": "repair"}),
    "matched softly, reset": Fusion(SOFT),
    "matched as searched, repair": Fusion(SEARCHED),
    "matched by group, reset": Fusion(BY_GROUP),
    "universe, reset": Fusion(UNIVERSE, needs="several parents"),
    "parents renewed, matched, reset": Fusion({"parents_renorm": "reset"}, needs="the same labels"),
    "one head from 500 labels, matched, reset": Fusion(LABELLED),
    "worst 0.2 kept, reset": Fusion({"keep_worst": 0.2}),
    "1.2 times the parameters, reset": Fusion(times=1.2),
    "1.5 times the parameters, reset": Fusion(times=1.5),
    "matched, reset, distilled": Fusion(DISTIL),
}
REFITTED: dict[str, Step] = {
    "regmean": Fusion({"refit": "regmean"}),
    "least-squares": Fusion({"refit": "least-squares"}),
    "ridge to matched": Fusion(MATCHED_FIRST_PASS),
    "ridge to clusters": Fusion(FIRST_PASS),
    "ridge to matched, second pass": Fusion({**RIDGE, "targets": "matched"}),
    "ridge to clusters, second pass not augmented": Fusion({**RIDGE, "augment": False}),
    "ridge: clusters, second pass": Fusion(RIDGE),
}
TOGETHER: dict[str, Step] = {
    "ridge, matched by group": Fusion({**RIDGE, **BY_GROUP}),
    "ridge, universe": Fusion({**RIDGE, **UNIVERSE}, needs="several parents"),
    "ridge, heads side by side": Fusion({**RIDGE, "joint_head": "none"}),
    "ridge, parents as they are": Fusion({**RIDGE, "joint_head": "none", "parents_renorm": "none"}),
    "ridge, one head from 500 labels": Fusion({**RIDGE, **LABELLED}),
    "ridge, worst 0.2 kept": Fusion({**RIDGE, "keep_worst": 0.2}),
    "ridge, 1.2 times the parameters": Fusion(RIDGE, times=1.2),
    "ridge, 1.5 times the parameters": Fusion(RIDGE, times=1.5),
    "ridge, 1.5 times the parameters, one head from 500 labels": Fusion({**RIDGE, **LABELLED}, times=1.5),
    "ridge, distilled": Fusion({**RIDGE, **DISTIL}),
    "ridge, distilled for three epochs": Fusion({**RIDGE, "distil": 3}),
}
# Settings that a version of depfuse may not have; their steps are left out there.
OPTIONAL: dict[str, Step] = {
    "weights by stage, reset": Fusion({"weights_by": "stage"}),
    "weights by group, reset": Fusion({"weights_by": "group"}),
    "fisher average, reset": Fusion({"average": "fisher"}),
    "matched, statistics without data": Fusion({"renorm": "data-free"}),
    "statistics augmented, reset": Fusion({"augment_statistics": True}),
    "ridge, weights by stage": Fusion({**RIDGE, "weights_by": "stage"}),
    "ridge, weights by group": Fusion({**RIDGE, "weights_by": "group"}),
    "ridge, fisher average": Fusion({**RIDGE, "average": "fisher"}),
    "goal best": Fusion({"goal": "best"}),
}
STEPS: dict[str, Step] = {**COMPARED, **PUBLISHED, **MERGED, **REFITTED, **TOGETHER, **OPTIONAL}

STUDY = Study(
    "ablate_child", __doc__, sets(), {"step": STEPS}, by_cost, draw_by_cost, AGREEMENT,
    {
        "accuracy": "per cent of the test images",
        "loss": "cross-entropy on the test images, nats",
        "held_out_accuracy": "per cent of held-out training images",
        "agreement": "per cent of held-out training images with the ensemble's class",
    },
)  # fmt: skip
