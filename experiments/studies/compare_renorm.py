"""Every method of renormalisation on the real pairs, with the same matching: accuracy of the child.

    python -m experiments.studies.compare_renorm

Children at equal weights, matched by activations and by weights on 2,000 calibration images with seed 0. `none` is the
average as it is, with averaged BatchNorm statistics; `augmented` is reset from the images flipped and shifted. Prints a
Markdown row as soon as it is there.

Accuracies are on the full test set, or with `--images held-out` on 5,000 training images that calibration did not see:
that is what methods and defaults are chosen on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import nn

from depfuse import FusionResult, Recipe, fuse
from depfuse.data import Loader, calibration_loader
from depfuse.evaluate import evaluate
from depfuse.merge import average
from depfuse.renorm import has_batch_norm
from experiments.lib.parents.shared import PAIRS, Pair, require_shared
from experiments.studies.compare_solvers import held_out

METHODS = ("none", "data-free", "rescale", "repair", "reset", "augmented")


def child_of(result: FusionResult, method: str) -> nn.Module:
    """The child of a matching by a method."""
    augmented = method == "augmented"
    update = {"renorm": "reset" if augmented else method, "augment_statistics": augmented}
    recipe = result.recipe.changed(**update)
    shares = recipe.shares(len(result.averaged))
    child = average(result.averaged, result.groups, result.couplings, shares)
    replace(result.material, recipe=recipe).renormalise_as_asked(child, result.couplings, shares)
    return child


def measure(pair: Pair, criterion: str, images: str) -> list[str]:
    """Accuracies in per cent, '' for methods that need a BatchNorm."""
    networks, data = pair.networks(), pair.dataset()
    calibration = calibration_loader(data, 2000, seed=0)
    judged = Loader(data.test if images == "test" else held_out(data), data.preprocessing, batch_size=1000)
    result = fuse(networks, Recipe.create(refit="none", criterion=criterion), calibration)
    possible = METHODS if has_batch_norm(networks[0]) else METHODS[:4]
    cells = [f"{100 * evaluate(child_of(result, method), judged).accuracy:.2f}" for method in possible]
    return cells + [""] * (len(METHODS) - len(cells))


def main() -> None:
    """Print a row per pair and criterion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--images", choices=("test", "held-out"), default="test")
    parser.add_argument("--criteria", nargs="*", default=["activations", "weights"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    require_shared()
    torch.set_num_threads(options.threads)
    print("| networks | matched by | " + " | ".join(METHODS) + " |")
    print("| --- " * (len(METHODS) + 2) + "|")
    for name in options.pairs:
        for criterion in options.criteria:
            row = measure(PAIRS[name], criterion, options.images)
            print(f"| {PAIRS[name].name} | {criterion} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
