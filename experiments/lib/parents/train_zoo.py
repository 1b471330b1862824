"""Train the parents that zoo.yaml lists: what is missing is trained, what was cut off is resumed.

    python -m experiments run train_zoo

Each network is written with its card, in half precision where that keeps its accuracy within 0.05 points. Data sets are
downloaded by torchvision; `--npz` takes one from a file instead (x_train, y_train, x_test, y_test; the data set's own
pre-processing is used). A training that is stopped goes on where it stood, bit for bit on the CPU. All entries, and the
networks that are there, are checked before any training.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from depfuse.data import DATA_SETS, DataSet, Loader, load_data, parse_labels, select_labels, select_share
from depfuse.data.names import builtin_preprocessing
from depfuse.distributed.device import resolve_device
from depfuse.errors import DataError, DepfuseError
from depfuse.evaluate import evaluate
from depfuse.io.atomic_files import check_writable
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.models import build_network
from depfuse.train import EpochReport, TrainRecipe, train
from depfuse.train.recipe import SAVE_SECONDS
from experiments.lib.parents.zoo import ZOO, Entry, accuracy_of, chosen, read_zoo
from experiments.lib.places import CHECKPOINTS

KEPT = 5e-4  # of the accuracy, in half precision


def data_of(entry: Entry, files: dict[str, Path], root: Path) -> tuple[DataSet, tuple[int, ...]]:
    """The entry's data, and for each output of its network the label that it stands for."""
    if entry.data in files:
        own = builtin_preprocessing(entry.data)
        data = load_data(files[entry.data], mean=own.mean, std=own.std)
        data = dataclasses.replace(data, name=entry.data)
    else:
        data = load_data(entry.data, root=root)
    labels = list(range(len(data.classes)))
    if entry.labels is not None:
        data, labels = select_labels(data, parse_labels(entry.labels))
    if entry.share is not None:
        share = entry.share
        data = select_share(data, share.number, share.of, alpha=share.alpha, seed=share.seed)
    return data, tuple(labels)


def in_half_precision(
    architecture: str, state: Mapping[str, Tensor], data: DataSet, accuracy: float, device: torch.device
) -> tuple[Mapping[str, Tensor], float]:
    """Weights in half precision and their accuracy; as they are where that changes it by more than 0.05 points."""
    halved = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    model = build_network(architecture)
    model.load_state_dict({key: halved[key].to(tensor.dtype) for key, tensor in state.items()})
    images = Loader(data.test, data.preprocessing, batch_size=500, device=device)
    found = evaluate(model.to(device), images).accuracy
    return (halved, found) if abs(found - accuracy) <= KEPT else (state, accuracy)


def train_entry(
    name: str,
    entry: Entry,
    data: DataSet,
    labels: tuple[int, ...],
    out: Path,
    device: torch.device,
    save_seconds: float = SAVE_SECONDS,
    say: Callable[[str], object] = partial(print, flush=True),
) -> float:
    """Train one network and write it with its card; its accuracy (fraction). `say` is called after every epoch.

    Where the disk fills, `CheckpointError` says so; what had been saved of the training goes on another time.
    """
    check_writable(out)
    recipe = TrainRecipe.suited_to(data, seed=entry.seed, **entry.recipe)
    torch.manual_seed(entry.seed)
    model = build_network(entry.architecture)
    resume = out.with_suffix(".resume")

    def report(done: EpochReport) -> None:
        accuracy = f"{100 * done.accuracy:.1f} % of the training images"
        say(f"{name}: epoch {done.epoch} of {done.epochs}, {accuracy}, {done.seconds:.1f} s")

    metrics = train(model, data, recipe, device=device, resume_path=resume, progress=report, save_seconds=save_seconds)
    trained = model.to("cpu").state_dict()
    state, accuracy = in_half_precision(entry.architecture, trained, data, metrics["accuracy"], device)
    split = {"labels": entry.labels} if entry.labels else entry.share.model_dump() if entry.share else {}
    card = Card(
        architecture=entry.architecture,
        data=entry.data,
        preprocessing=data.preprocessing,
        classes=labels,
        recipe={**recipe.model_dump(mode="json"), **split},
        seeds={"train": entry.seed},
        metrics={**metrics, "accuracy": accuracy},
    )
    write_checkpoint(out, state, card)
    resume.unlink(missing_ok=True)
    return accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what was asked for; 2 where the request or the data are wrong, or a file cannot be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print what is there, with its accuracy, and train nothing")
    parser.add_argument("--zoo", type=Path, default=ZOO, metavar="FILE")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--npz", action="append", default=[], metavar="DATA=FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save-seconds", type=float, default=SAVE_SECONDS, help="between two savings of a training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        run(options)
    except DepfuseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Train what is missing; all entries and what is there are checked first."""
    files = {name: Path(file) for name, _, file in (pair.partition("=") for pair in options.npz)}
    if unknown := [name for name in files if name not in DATA_SETS]:
        raise DataError(f"--npz {unknown[0]} is no data set: give one of {', '.join(DATA_SETS)}, as in cifar10=FILE")
    device = resolve_device(options.device)
    entries = chosen(read_zoo(options.zoo), options.names)
    outs = {name: options.out / f"{name}.safetensors" for name in entries}
    there = {name: accuracy_of(out, entries[name]) for name, out in outs.items() if out.exists()}
    for name, entry in entries.items():
        if options.list:
            print(f"{name}: {100 * there[name]:.2f} %" if name in there else f"{name}: not trained")
        elif name in there:
            print(f"{name}: is there")
        elif entry.device == "gpu" and device.type == "cpu":
            print(f"{name}: needs a GPU")
        else:
            started = time.perf_counter()
            data = data_of(entry, files, options.data_root)
            accuracy = train_entry(name, entry, *data, outs[name], device, options.save_seconds)
            print(f"{name}: {100 * accuracy:.2f} % in {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
