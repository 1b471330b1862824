"""Long distillations judged on images that no parent knows: parents learn one half of the training images.

    python -m experiments run distil_unseen --threads 1

Hours; one thread. Two parents see the same half from other random weights; their child is refitted and distilled on it,
and so is the parent that is better on the other half. All are judged there, and no test image is looked at: were the
judging images known to the parents, what is closest to them would look best. Parents and unfinished trainings are kept.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from depfuse import Recipe, fuse
from depfuse.cli import main as depfuse
from depfuse.data import DataSet, Loader, calibration_loader, load_data, select_share
from depfuse.ensemble.ensemble import Ensemble
from depfuse.evaluate import Scores, evaluate, evaluate_ensemble
from depfuse.io.into_network import load_network
from depfuse.teach.distil import Distillation
from experiments.lib.command import check_counts, exit_code
from experiments.lib.processes import CellError

SHARES = (0.5, 0.5)
ORDER = 12  # seed of the order of the images


def trained(options: argparse.Namespace) -> list[nn.Module]:
    """Both parents, trained unless those that are asked for lie in the folder."""
    options.folder.mkdir(parents=True, exist_ok=True)
    asked = f"{options.data} {options.architecture} {options.parent_epochs}"
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    found = []
    for seed in (0, 1):
        path = options.folder / f"parent{seed}-{digest}.safetensors"
        settings = ["--half", "0", "--epochs", str(options.parent_epochs), "--seed", str(seed), "--quiet"]
        if not path.exists() and depfuse(
            ["train", options.architecture, "--data", options.data, *settings, "--out", str(path)]
        ):
            raise CellError(f"parent {seed} could not be trained")
        found.append(load_network(path, trust=True).eval())  # the architecture was given here
    return found


def networks(options: argparse.Namespace, data: DataSet, judged: Loader) -> Iterator[tuple[str, Scores]]:
    """What each network has on the other half, one after the other."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(ORDER))
    data = replace(data, train=data.train.take(order))
    parents = trained(options)
    scores = [evaluate(parent, judged) for parent in parents]
    for number, own in enumerate(scores):
        yield f"parent {number}", own
    yield "ensemble", evaluate_ensemble(parents, judged, SHARES)
    calibration = calibration_loader(data, options.calibration)
    recipe = Recipe(refit="ridge", calibration=options.calibration)
    yield "child, refitted", evaluate(fuse(parents, recipe, calibration).child, judged)
    recipe = recipe.changed(distil=options.epochs)
    training = Distillation(data, resume=options.folder / "state")
    yield "child, distilled", evaluate(fuse(parents, recipe, calibration, training=training).child, judged)
    better = copy.deepcopy(max(zip(scores, parents, strict=True), key=lambda pair: pair[0].accuracy)[1])
    training.train(
        better,
        Ensemble(parents, SHARES),
        recipe.train,
        seed=recipe.seed,
        name="parent",
        origin=recipe.model_dump_json(),
    )
    yield "better parent, distilled", evaluate(better, judged)
    training.delete_states()


def run(options: argparse.Namespace) -> None:
    check_counts(options, parent_epochs=1, epochs=1, calibration=2)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    whole = load_data(options.data)
    judged = Loader(select_share(whole, 1, 2).train, whole.preprocessing, batch_size=500)
    print("| network | accuracy | cross-entropy |\n| --- | --- | --- |")
    for name, scores in networks(options, select_share(whole, 0, 2), judged):
        print(f"| {name} | {100 * scores.accuracy:.2f} | {scores.loss:.3f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--architecture", default="cifar_resnet20")
    parser.add_argument("--parent-epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=12, help="of distilling")
    parser.add_argument("--calibration", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path("runs/unseen"))
    parser.add_argument("--threads", type=int)
    return exit_code(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
