"""Fusing parents of different knowledge: the digits pairs in checkpoints/, and how their training was chosen.

    python -m experiments.studies.skewed_digits
    python -m experiments.studies.skewed_digits --held-out

The first prints, for the five shipped skewed pairs on the 500 test images, the parents, their logit ensemble, the
naive average with BatchNorm reset, and the child of `depfuse.fusion.pipeline` with its default settings, in per cent.

The second never looks at a test image: each pair is trained, with seeds that no shipped parent has, on four fifths of
the training images, and judged on the other fifth.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import nn

from depfuse import fuse
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.evaluate import evaluate, evaluate_ensemble
from depfuse.fusion.comparison import naive_average
from depfuse.io.loading import load_network
from depfuse.renorm import renormalise
from experiments.lib.parents.digits import SKEWED, SKEWS, train_skewed
from experiments.lib.places import CHECKPOINTS

FOLDS = 5
FIRST_HELD_OUT_SEED = 1000


def shipped() -> Iterator[tuple[DataSet, list[nn.Module]]]:
    for pair in range(5):
        stem = "digits" if pair == 0 else f"digits-skewed-{pair}"
        yield load_data("digits"), [load_network(CHECKPOINTS / f"{stem}-{which}.safetensors") for which in SKEWS]


def held_out(pairs: int, epochs: int, weight_decay: float, width: float) -> Iterator[tuple[DataSet, list[nn.Module]]]:
    data = load_data("digits")
    for pair in range(pairs):
        seed = FIRST_HELD_OUT_SEED + 2 * pair
        part = fold(data, pair % FOLDS)
        settings = {**SKEWED, "epochs": epochs, "weight_decay": weight_decay}
        yield part, [train_skewed(part, which, seed, settings, f"digits_resnet(width={width})")[0] for which in SKEWS]


def fold(data: DataSet, number: int) -> DataSet:
    """The training images without one fifth of each class, which takes the place of the test images."""
    generator = np.random.default_rng(20240)
    folds = torch.empty(len(data.train), dtype=torch.int64)
    for label in range(len(data.classes)):
        of_class = torch.nonzero(data.train.labels == label)[:, 0]
        folds[of_class[generator.permutation(len(of_class))]] = torch.arange(len(of_class)) % FOLDS
    inside, outside = (torch.nonzero(kept)[:, 0] for kept in (folds != number, folds == number))
    return dataclasses.replace(data, train=data.train.take(inside), test=data.train.take(outside))


def measure(data: DataSet, parents: list[nn.Module]) -> dict[str, float]:
    calibration = calibration_loader(data, 2000)  # all of them: there are fewer
    judged = Loader(data.test, data.preprocessing, batch_size=500)
    result = fuse(parents, calibration=calibration)
    naive = naive_average(parents, (0.5, 0.5), result.groups)
    renormalise(naive, "reset", calibration)
    first, second = (evaluate(parent, judged).accuracy for parent in parents)
    row = {
        "parent a": first,
        "parent b": second,
        "ensemble": evaluate_ensemble(parents, judged).accuracy,
        "naive, reset": evaluate(naive, judged).accuracy,
        "child": evaluate(result.child, judged).accuracy,
    }
    row["above better parent"] = row["child"] - max(first, second)
    row["above naive"] = row["child"] - row["naive, reset"]
    return {name: 100 * value for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--held-out", action="store_true", help="train pairs and judge them on held-out training images"
    )
    parser.add_argument("--epochs", type=int, default=15, help="15 take as many steps here as 12 on all images")
    parser.add_argument("--weight-decay", type=float, default=SKEWED["weight_decay"])
    parser.add_argument("--width", type=float, default=1.25)
    parser.add_argument("--pairs", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of additions depends on the number of threads
    pairs = (
        held_out(options.pairs, options.epochs, options.weight_decay, options.width) if options.held_out else shipped()
    )
    table = pd.DataFrame([measure(data, parents) for data, parents in pairs])
    table.loc["mean"] = table.mean()
    print("| pair | " + " | ".join(table.columns) + " |")
    print("| --- " * (len(table.columns) + 1) + "|")
    for pair, row in table.iterrows():
        print(f"| {pair} | " + " | ".join(f"{value:.1f}" for value in row) + " |")


if __name__ == "__main__":
    main()
