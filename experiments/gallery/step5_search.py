"""Search for a recipe, and fuse by the best one.

    python -m experiments.gallery.step5_search

Shows what to do where the default recipe is not good enough: `depfuse tune`, called from Python here, with the words of
the command line. It tries eight recipes, the first of them the defaults, and judges each child on 397 training images
that it was not calibrated on; their labels are read, and no test image is. Every trial is a file with its recipe,
which `depfuse fuse --preset` takes as well. The picture has the accuracy of each trial and of the best so far, as the
search's own report.html has it.

Reached on 500 test images (seed 0, one thread of an Intel Xeon with AVX512-bf16): the defaults 65.8 % and the best
trial 78.2 %; on the held-out training images 70.8 % and 80.6 %.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure

from depfuse import Recipe, fuse
from depfuse.cli import main as depfuse
from depfuse.data import calibration_loader
from depfuse.evaluate import evaluate
from depfuse.io.into_network import load_network
from depfuse.study.trials import Judged, TrialRecord, best_first
from experiments.gallery.digits import CHECKPOINTS, data, test

FILES = [CHECKPOINTS / f"digits-skewed-2-{name}.safetensors" for name in "ab"]
SETTINGS = ("align.criterion=activations", "merge.average=mean", "refit=none", "renorm=reset")
KEPT = [word for setting in SETTINGS for word in ("--set", setting)]


def main(picture: Path) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        depfuse(["tune", *map(str, FILES), *KEPT, "--labels", "397", "--trials", "8", "--out", folder])
        found = [TrialRecord.model_validate_json(file.read_text()) for file in Path(folder).glob("trial-*.json")]

    draw(sorted(found, key=lambda record: record.trial), picture)
    best = best_first(found, labelled=True)[0]
    parents = [load_network(file) for file in FILES]
    reached = {}
    for name, record in {"defaults": min(found, key=lambda record: record.trial), f"trial {best.trial}": best}.items():
        recipe = Recipe(**record.recipe)
        child = fuse(parents, recipe, calibration_loader(data, recipe.calibration.images)).child
        reached[name] = 100 * evaluate(child, test).accuracy
        print(f"{name:9s} {reached[name]:5.1f} % of the test images")
    return reached


def draw(trials: list[TrialRecord], picture: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="trial", ylabel="accuracy on held-out images, %")
    complete = [record for record in trials if record.state == "complete"]
    numbers = [record.trial for record in complete]
    values = [record.shown_quality(Judged(labelled=True)) for record in complete]
    axes.plot(numbers, values, "o", label="trial")
    axes.plot(numbers, list(itertools.accumulate(values, max)), drawstyle="steps-post", label="best so far")
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as for the figures above
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
