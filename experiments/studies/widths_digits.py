"""Fusing digits parents of unequal widths: a 1.5-wide and a 1-wide residual network, to either width.

    python -m experiments.studies.widths_digits

Trains each pair, either as the skewed parents in checkpoints/ are (each saw most of five digits and few of the others),
or with the trainer's own settings on the same images, all of them. Prints for the 500 test images, in per cent: the
parents, the naive average (the first channels on the first) with BatchNorm reset, and the child at equal weights to the
width of either parent with BatchNorm reset, by default and by other transports; and refitted, to the larger width.

With `--held-out` no test image is looked at: training is on four fifths of the training images, the rest is the judge.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pandas as pd
import torch
from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.evaluate import evaluate
from depfuse.fusion.comparison import naive_average
from depfuse.renorm import renormalise
from experiments.lib.parents.digits import SKEWED, SKEWS, train_same, train_skewed
from experiments.studies.skewed_digits import FIRST_HELD_OUT_SEED, FOLDS, fold

WIDTHS = (1.5, 1.0)
RECIPES = {
    "emd": Recipe(refit="none"),
    "sinkhorn": Recipe(refit="none", solver="sinkhorn", regularisation=0.1),
    "unbalanced": Recipe(refit="none", solver="unbalanced"),
    "weights": Recipe(refit="none", criterion="weights"),
    "emd, refitted": Recipe(refit="ridge"),
}


def pairs(knowledge: str, count: int, first_seed: int, *, held_out: bool) -> Iterator[tuple[DataSet, list[nn.Module]]]:
    data = load_data("digits")
    for pair in range(count):
        seed = first_seed + 2 * pair + (FIRST_HELD_OUT_SEED if held_out else 0)
        part = fold(data, pair % FOLDS) if held_out else data
        architectures = [f"digits_resnet(width={width})" for width in WIDTHS]
        if knowledge == "same":
            yield part, [train_same(part, seed + n, arch)[0] for n, arch in enumerate(architectures)]
        else:
            yield part, [train_skewed(part, w, seed, SKEWED, a)[0] for w, a in zip(SKEWS, architectures, strict=True)]


def measure(data: DataSet, parents: list[nn.Module]) -> dict[str, float]:
    calibration = calibration_loader(data, 2000)  # all of them: there are fewer
    judged = Loader(data.test, data.preprocessing, batch_size=500)
    row = {f"parent {w}": evaluate(p, judged).accuracy for w, p in zip(WIDTHS, parents, strict=True)}
    for number, width in enumerate(WIDTHS, start=1):
        for name, recipe in RECIPES.items():
            if recipe.refit != "none" and width < max(WIDTHS):
                continue
            result = fuse(parents, recipe.changed(width_of=number), calibration)
            if name == "emd":
                naive = naive_average(result.unmatched, (0.5, 0.5), result.groups)
                renormalise(naive, "reset", calibration)
                row[f"to {width}: naive"] = evaluate(naive, judged).accuracy
            row[f"to {width}: {name}"] = evaluate(result.child, judged).accuracy
    return {name: 100 * value for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--knowledge", choices=("skewed", "same"), default="skewed")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true", help="judge on training images that nothing has seen")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of additions depends on the number of threads
    rows = []
    for data, parents in pairs(options.knowledge, options.pairs, options.first_seed, held_out=options.held_out):
        rows.append(measure(data, parents))
        if len(rows) == 1:
            print("| pair | " + " | ".join(rows[0]) + " |")
            print("| --- " * (len(rows[0]) + 1) + "|")
        print(f"| {len(rows)} | " + " | ".join(f"{value:.1f}" for value in rows[-1].values()) + " |", flush=True)
    mean = pd.DataFrame(rows).mean()
    print("| mean | " + " | ".join(f"{value:.1f}" for value in mean) + " |")


if __name__ == "__main__":
    main()
