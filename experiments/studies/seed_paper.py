"""The training recipe behind the seed paper's table: which part of it makes children good that are merged only.

    python -m experiments run seed_paper --device cuda

Pairs of ResNet18 of one task, on CIFAR-10, trained by the usual recipe of CIFAR-100 (200 epochs of SGD at 0.1, weight
decay 5e-4, batches of 128, cosine in place of steps, flips and shifts, no smoothing, no cutout), and with one part
of it changed at a time; of width 16, and in full, which needs a GPU. The same on digits for 40 epochs needs none.
Children are matched by optimal transport of activations or weights, or by default, averaged and reset; and refitted. A
seed trains its own pair. Intervals are of 95 per cent over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depfuse.recipe.presets import preset
from experiments.lib.beside_published import BesidePublished, Published
from experiments.lib.layouts import BOTH, draw_by_cost
from experiments.lib.measure import FLOPS
from experiments.lib.parents.families import Family
from experiments.lib.parents.protocols import Protocol
from experiments.lib.steps import Baseline, Fusion, Step
from experiments.lib.study import Study

SEEDS = 3
USUAL: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "label_smoothing": 0.0,
    "warmup": 1.0,
}
DIGITS = {**USUAL, "epochs": 40, "batch_size": 32}
# One part of the recipe -> what it is in its place.
CHANGED: dict[str, Mapping[str, Any]] = {
    "usual recipe": {},
    "a tenth of the epochs": {"epochs": 20},
    "weight decay 1e-4": {"weight_decay": 1e-4},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "cutout": {"cutout": 8},
    "four times the batch and the rate": {"batch_size": 512, "learning_rate": 0.4},
}
CHANGED_DIGITS: dict[str, Mapping[str, Any]] = {
    **CHANGED,
    "a tenth of the epochs": {"epochs": 4},
    "cutout": {"cutout": 2},
    "four times the batch and the rate": {"batch_size": 128, "learning_rate": 0.4},
}
RIDGE = {"refit": "ridge"}
STEPS: dict[str, Step] = {
    "parent 1": Baseline("parent", {"number": 1}, images=False),
    "parent 2": Baseline("parent", {"number": 2}, images=False),
    "ensemble": Baseline("ensemble_as_it_is", images=False),
    "naive average, reset": Baseline("naive_reset"),
    "OT, activations": Fusion(preset("depgraph-ot-activations").settings),
    "OT, weights": Fusion(preset("depgraph-ot-weights").settings),
    "matched": Fusion(),
    "refitted": Fusion(RIDGE),
    "distilled for 3 passes": Fusion({**RIDGE, "distil": 3}),
    "goal best": Fusion({"goal": "best"}),
}
TEN = Published(
    "published, ResNet18",
    {"parent 1": "94.99", "parent 2": "94.76", "OT, activations": "92.16", "OT, weights": "91.80"},
)
HUNDRED = Published(
    "published, ResNet18",
    {"parent 1": "75.88", "parent 2": "75.72", "OT, activations": "63.11", "OT, weights": "60.44"},
)
THIN_TITLE, FULL_TITLE, HUNDRED_TITLE = (
    "CIFAR-10, ResNet18 of width 16",
    "CIFAR-10, ResNet18",
    "CIFAR-100, ResNet18",
)
DIGITS_TITLE = "Digits, digits_resnet"


def _family(title: str, architecture: str, data: str, settings: Mapping[str, Any], kind: str, *, gpu: bool) -> Family:
    images = 900 if data == "digits" else 2000
    return Family(title, images, Protocol(architecture, data, settings, kind), count=SEEDS, gpu=gpu)


def _name(prefix: str, part: str) -> str:
    return f"{prefix}-{part.replace(',', '').replace(' ', '-')}"


PARENTS = {
    **{
        _name("seed-digits", part): _family(
            part, "digits_resnet(width=1.0)", "digits", {**DIGITS, **changed}, DIGITS_TITLE, gpu=False
        )
        for part, changed in CHANGED_DIGITS.items()
    },
    **{
        _name("seed-thin", part): _family(
            part, "cifar_resnet18(width=0.25)", "cifar10", {**USUAL, **changed}, THIN_TITLE, gpu=True
        )
        for part, changed in CHANGED.items()
    },
    "seed-ten": _family("usual recipe", "cifar_resnet18", "cifar10", USUAL, FULL_TITLE, gpu=True),
    "seed-hundred": _family("usual recipe", "cifar_resnet18", "cifar100", USUAL, HUNDRED_TITLE, gpu=True),
}
PUBLISHED = {FULL_TITLE: (TEN,), HUNDRED_TITLE: (HUNDRED,)}
SOURCE = (
    "Published: fusion by optimal transport on DepGraph's groups, ResNet18 of full width; the child of activations and"
    " that of weights."
)

STUDY = Study(
    "seed_paper", __doc__, PARENTS, {"network": STEPS}, BesidePublished(PUBLISHED, SOURCE), draw_by_cost, FLOPS, BOTH
)
