"""REPAIR on networks without BatchNorm: how much of what a matched average loses its renormalisation gives back.

    python -m experiments.studies.plain_vgg

Pairs of VGG11 without BatchNorm, trained here from seeds 2k and 2k + 1 on scikit-learn's digits at 32 x 32 pixels;
fused at equal weights, matched by activations (exact transport, and Sinkhorn couplings with regularisation 0.1) on
1,000 training images. Accuracy on the 500 test images without renormalisation, with the norms of the weights (no
images), with the deviations alone and with REPAIR, and the share that REPAIR recovers of the gap to the parents' mean:
of each pair, of which some lose a few images only, and of the means over all pairs. Prints Markdown.

Found (one thread of an AMD EPYC): of the gap of all three pairs REPAIR recovers 85.8 % with exact transport and 92.2 %
with Sinkhorn couplings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.evaluate import evaluate, evaluate_ensemble
from depfuse.models import build_network
from depfuse.train import TrainRecipe, train

SOLVERS: dict[str, dict[str, float]] = {"emd": {}, "sinkhorn": {"regularisation": 0.1}}


def trained(data: DataSet, width: float, epochs: int, seed: int) -> nn.Module:
    """A VGG11 without BatchNorm; smaller steps and a longer warm-up than networks with BatchNorm need."""
    torch.manual_seed(seed)
    parent = build_network(f"vgg11(batch_norm=False, in_channels=1, width={width})")
    steps = {"batch_size": 32, "learning_rate": 0.02, "warmup": 5.0, "weight_decay": 2e-3, "label_smoothing": 0.0}
    train(parent, data, TrainRecipe.suited_to(data, epochs=epochs, seed=seed, **steps))
    return parent


def recovered(parents: float, matched: float, repaired: float) -> float:
    """Share of the gap between the matched child and the parents' mean that is closed."""
    return (repaired - matched) / (parents - matched)


def row(pair: str, solver: str, figures: Sequence[float]) -> str:
    """A line of the table: the parents, their ensemble, the children, and what REPAIR recovers."""
    first, second, _, matched, *_, repaired = figures
    share = recovered((first + second) / 2, matched, repaired)
    a, b, *rest = [f"{100 * figure:.1f}" for figure in (*figures, share)]
    return f"| {pair} | {solver} | {a} / {b} | {' | '.join(rest)} % |"


def main() -> None:
    """Print a row per pair and solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_data("digits", size=(32, 32))
    calibration, test = calibration_loader(data, 1000), Loader(data.test, data.preprocessing, batch_size=500)
    print("| pair | solver | parents | ensemble | matched | data-free | rescale | repair | recovered |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows: dict[str, list[list[float]]] = {solver: [] for solver in SOLVERS}
    for pair in range(options.pairs):
        parents = [trained(data, options.width, options.epochs, 2 * pair + number) for number in (0, 1)]
        own = [evaluate(parent, test).accuracy for parent in parents]
        both = evaluate_ensemble(parents, test).accuracy
        for solver, settings in SOLVERS.items():
            own = {"refit": "none", "solver": solver, **settings}
            child = {
                renorm: evaluate(fuse(parents, Recipe.create(renorm=renorm, **own), calibration).child, test).accuracy
                for renorm in ("none", "data-free", "rescale", "repair")
            }
            rows[solver].append([*own, both, *child.values()])
            print(row(str(pair), solver, rows[solver][-1]), flush=True)
    for solver, found in rows.items():
        print(row("mean", solver, [sum(column) / len(found) for column in zip(*found, strict=True)]))


if __name__ == "__main__":
    main()
