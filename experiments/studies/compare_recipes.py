"""Every published method that comes with depfuse over the real pairs, beside the default settings and `refit ridge`.

    python -m experiments run compare_recipes --threads 1

Half a minute a child on the mean; one thread.
"""

from __future__ import annotations

from depfuse.recipe.presets import preset, published
from experiments.lib.layouts import by_cost, draw_by_cost
from experiments.lib.parents.families import sets
from experiments.lib.steps import Fusion, Step
from experiments.lib.study import Study

RECIPES: dict[str, Step] = {
    **{name: Fusion(dict(preset(name).settings)) for name in published()},
    "(default settings)": Fusion({"refit": "auto"}),
    "(refit ridge)": Fusion({"refit": "ridge"}),
}

STUDY = Study(
    "compare_recipes",
    __doc__,
    sets(
        "resnet20-8-1-8-2", "resnet20-8-1-8-3", "resnet20-8-2-8-3", "resnet20-1-4", "simplenet", "digits",
        "resnet56-3-5", "cifar100", "halves", "own-halves",
    ),
    {"recipe": RECIPES},
    by_cost,
    draw_by_cost,
    columns={
        "accuracy": "per cent of the test images",
        "held_out_accuracy": "per cent of held-out training images",
    },
)  # fmt: skip
