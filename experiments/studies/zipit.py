"""ZipIt's protocol: parents of random halves of the classes, each with a cross-entropy head, fused without labels.

    python -m experiments run zipit --distil --device cuda

ResNet20 of widths 1 to 16 learns CIFAR-100, and of width 4 CIFAR-10, for 100 epochs, which needs a GPU. A CPU has
parents of digits, the halves of CIFAR-10 in `checkpoints/` (width 1, classes 0 to 4 and 5 to 9, 20 epochs), and parents
of half the width and few epochs: `--sets zipit-digits own-halves zipit-small --threads 1`. A seed divides the classes,
initialises parents and draws images: five, of which the first is there to choose by. Accuracy is joint, over all
classes; intervals are of 95 per cent over seeds. Heads side by side and one head run both parents; multiplications and
parameters are times a parent's.
"""

from __future__ import annotations

from experiments.lib.beside_published import BesidePublished, Published
from experiments.lib.layouts import BOTH, draw_by_cost
from experiments.lib.measure import FLOPS
from experiments.lib.parents.families import Family, shipped
from experiments.lib.parents.protocols import RandomClasses
from experiments.lib.steps import Baseline, Fusion, Step
from experiments.lib.study import Study

SPLITS = 5
FULL = {"epochs": 100, "batch_size": 500, "learning_rate": 0.4, "warmup": 5.0, "label_smoothing": 0.0}
SMALL = {"epochs": 3, "batch_size": 64, "learning_rate": 0.1}
DIGITS = {"epochs": 30, "batch_size": 32, "learning_rate": 0.1}
HUNDRED, TEN, DIGITS_TITLE = "CIFAR-100, 50 + 50 classes", "CIFAR-10, 5 + 5 classes", "Digits, 5 + 5 classes"
RIDGE = {"refit": "ridge"}
WIDER = (1.33, 1.66)

STEPS: dict[str, Step] = {
    "parent 1": Baseline("parent", {"number": 1}, images=False),
    "parent 2": Baseline("parent", {"number": 2}, images=False),
    "heads side by side": Baseline("ensemble_as_it_is", images=False),
    "one head without labels": Baseline("ensemble_with_joint_head"),
    "naive average, reset": Baseline("naive_reset"),
    "better parent, head refitted": Baseline("best_parent"),
    "matched": Fusion(),
    "refitted": Fusion(RIDGE),
    "distilled for 3 passes": Fusion({**RIDGE, "distil": 3}),
    "distilled for 20 passes": Fusion({**RIDGE, "distil": 20}),
    "self-trained for 20 passes": Fusion({**RIDGE, "train.self_training": 20}),
    **{f"matched, {flops} times the multiplications": Fusion(flops=flops) for flops in WIDER},
    **{f"refitted, {flops} times the multiplications": Fusion(RIDGE, flops=flops) for flops in WIDER},
}

PUBLISHED = {
    HUNDRED: (
        Published(
            "published, width 16 (ZipIt!)",
            {
                "parent 1": "37.9",
                "heads side by side": "60.5",
                "matched": "27.9",
                "matched, 1.33 times the multiplications": "38.6",
                "matched, 1.66 times the multiplications": "47.0",
            },
        ),
    ),
    TEN: (
        Published(
            "published, width 4, CLIP targets (ZipIt!)",
            {
                "heads side by side": "87.4",
                "matched": "79.1",
                "matched, 1.33 times the multiplications": "83.8",
            },
        ),
    ),
}
SOURCE = (
    "Published: Stoica et al. 2024, *ZipIt! Merging Models from Different Tasks without Training*. Its CIFAR-10 parents"
    " learn CLIP's text features, ours labels of their own."
)


def _family(title: str, width: float, data: str, kind: str, *, small: bool = False) -> Family:
    settings = SMALL if small else FULL
    protocol = RandomClasses(f"cifar_resnet20(width={width:g})", data, settings, kind)
    return Family(title, 2000, protocol, count=SPLITS, gpu=not small)


PARENTS = {
    "zipit-digits": Family(
        "digits_resnet", 900, RandomClasses("digits_resnet(width=1.0)", "digits", DIGITS, DIGITS_TITLE), count=SPLITS
    ),
    "own-halves": shipped("own-halves", "width 1", TEN),
    "zipit-small": _family("width 0.5", 0.5, "cifar100", HUNDRED, small=True),
    **{f"zipit-width{width}": _family(f"width {width}", width, "cifar100", HUNDRED) for width in (1, 2, 4, 8, 16)},
    "zipit-ten": _family("width 4", 4, "cifar10", TEN),
}
GIVEN = {
    "own-halves": "classes 0 to 4 and 5 to 9, 20 epochs",
    "zipit-small": "parents had 3 epochs of 25,000 images each, in place of 100",
}

STUDY = Study(
    "zipit", __doc__, PARENTS, {"network": STEPS}, BesidePublished(PUBLISHED, SOURCE, GIVEN), draw_by_cost, FLOPS, BOTH
)
