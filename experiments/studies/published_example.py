"""The published example of fusion by graph matching: two networks for MNIST, fused at eleven shares.

    python -m experiments.studies.published_example

The networks and the row "published" are those of pygmtools' example on model fusion (Liu et al. 2022), which writes the
affinity matrix of all 139 channels out (19,321 x 19,321) and takes 13 to 30 minutes. Alpha is the share of network 2.
Per cent of MNIST's 10,000 test images; seconds are those of matching. The network has no BatchNorm, so nothing else is
done. Solvers that need images see 2,000 training images without labels. Prints the table in Markdown.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch

from depfuse import Recipe, find_groups, prove_groups
from depfuse.align import align
from depfuse.data import Loader, calibration_loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DepfuseWarning
from depfuse.evaluate import evaluate
from depfuse.fusion.agreement import Disagreement
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.merge import average
from experiments.lib.parents.shared import PAIRS, require_shared

PUBLISHED = (84.18, 85.12, 85.21, 82.52, 71.11, 53.74, 63.26, 78.51, 82.81, 83.97, 83.81)
SETTINGS: dict[str, dict[str, object]] = {
    "spectral": {"criterion": "weights", "solver": "spectral"},
    "reweighted-random-walk": {"criterion": "weights", "solver": "reweighted-random-walk"},
    "ipfp": {"criterion": "weights", "solver": "ipfp"},
    "frank-wolfe": {"criterion": "weights", "solver": "frank-wolfe"},
    "coordinate-descent": {"criterion": "weights", "solver": "coordinate-descent"},
    "emd": {"criterion": "activations", "solver": "emd"},
    "emd, before the non-linearity": {"criterion": "activations", "solver": "emd", "taps": "before"},
    "emd, both": {"criterion": "activations", "solver": "emd", "taps": "both"},
    "coordinate-descent, mixture": {
        "criterion": "mixture",
        "mixture": 0.7,
        "solver": "coordinate-descent",
        "start": "activations",
    },
}


def row(setting: dict[str, object]) -> tuple[list[float], float]:
    """Accuracy at each alpha, and the seconds of matching."""
    pair = PAIRS["simplenet"]
    networks, data = pair.networks(), pair.dataset()
    test = Loader(data.test, data.preprocessing, batch_size=1000)
    calibration = calibration_loader(data, 2000)
    example = data.example()
    groups = prove_groups(networks[0], find_groups(networks[0], example), example)
    recipe = Recipe.create(**setting)
    judge = Disagreement(Ensemble(networks, ()), groups, recipe.renorm, CalibrationSplit.for_matchings(calibration))
    started = time.perf_counter()
    couplings = align(networks, groups, recipe, calibration, judge).couplings
    seconds = time.perf_counter() - started
    children = [average(networks, groups, couplings, (1 - step / 10, step / 10)) for step in range(11)]
    return [100 * evaluate(child, test).accuracy for child in children], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    require_shared()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("always", DepfuseWarning)
    print("| alpha | " + " | ".join(f"{step / 10:g}" for step in range(11)) + " | seconds | at or above published |")
    print("| --- " * 14 + "|")
    print("| published | " + " | ".join(f"{value:.2f}" for value in PUBLISHED) + " | 793 and 1836 | |")
    for name in chosen.solvers:
        found, seconds = row(SETTINGS[name])
        above = sum(ours >= theirs - 1e-6 for ours, theirs in zip(found, PUBLISHED, strict=True))
        print(
            f"| {name} | " + " | ".join(f"{value:.2f}" for value in found) + f" | {seconds:.2f} | {above} of 11 |",
            flush=True,
        )


if __name__ == "__main__":
    main()
