"""The data that networks are run on: loaded as the user or their cards say, with images to judge by."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from depfuse.cli.named import agreed
from depfuse.cli.options import DataOptions
from depfuse.data import DataSet, Preprocessing, load_data
from depfuse.data.crops import Crops
from depfuse.data.draws import order_of_class
from depfuse.data.parts import SPLIT_SEED
from depfuse.data.patches import Crop
from depfuse.errors import DepfuseWarning
from depfuse.io.cards import Card
from depfuse.models.architecture import parse_architecture
from depfuse.text import counted

HELD_OUT = 0.1  # share of images to judge by, where there is no test set
MOST_HELD_OUT = 2000


def load_named(
    cards: Sequence[Card | None],
    options: DataOptions,
    name: str,
    architectures: Sequence[str] = (),
    seed: int = SPLIT_SEED,
) -> DataSet:
    """Load a data set, preprocessed as the user says, else as the cards say, else in its own way.

    A folder for networks of spandrel, which give pictures of any size, is cut into squares unless there is a size; the
    seed draws where.
    """
    mean, std = options.means(), options.stds()
    used = Preprocessing()
    if mean is None or std is None:
        used = agreed(cards, "preprocessing") or used
    size = options.sizes() or used.size
    crop: Crop | None = options.crops()
    of_pictures = bool(architectures) and all(parse_architecture(own).source == "spandrel" for own in architectures)
    if crop is None and size is None and of_pictures and Path(name).is_dir():
        crop = "auto"
    return load_data(
        name,
        root=options.root(name),
        mean=mean or used.mean,
        std=std or used.std,
        size=options.sizes() if options.crop else size,
        crop=crop,
        seed=seed,
        download=options.data is not None,
    )


def with_judged_images(data: DataSet, *, fused: bool) -> DataSet:
    """Give data without test images some to judge networks by, and say which.

    For a fusion they are held out of the training images, without their labels: the parents may have been trained on
    them. Else they are all of the training images, and their labels are read.
    """
    if data.test is not None:
        return data
    count = len(data.train)
    if not fused:
        if data.train.labels is not None:
            _say(
                f"{data.name} has no test set: the networks are evaluated on its {count:,} training images, which they"
                " may have been trained on"
            )
        return dataclasses.replace(data, test=data.train)
    lacks = "has no labels" if data.train.labels is None else "has no test set"
    # What is cut out of one photograph or volume is held out together.
    sources = data.train.sources
    whole = torch.arange(count) if sources is None else sources
    wholes = int(whole.max()) + 1
    held = min(round(HELD_OUT * wholes), MOST_HELD_OUT)
    order = order_of_class(wholes, SPLIT_SEED, 0)
    what = "image" if sources is None else "photograph" if isinstance(data.train.images, Crops) else "volume"
    out = torch.isin(whole, order[:held])
    numbers = torch.nonzero(out)[:, 0] if held else torch.arange(count)
    those = (
        f"{held:,} of its {wholes:,} {what}s, drawn by seed {SPLIT_SEED}" if held else f"its {counted(wholes, what)}"
    )
    _say(
        f"{data.name} {lacks}, so that no accuracy is known: how well the networks agree is measured on"
        f" {those}, which {'is' if (held or wholes) == 1 else 'are'} {'not used' if held else 'used'} for calibration"
        f"{'' if held else ' as well: there are too few'}"
    )
    train = data.train.take(torch.nonzero(~out)[:, 0])
    return dataclasses.replace(data, train=train, test=dataclasses.replace(data.train.take(numbers), labels=None))


def _say(sentence: str) -> None:
    warnings.warn(sentence, DepfuseWarning, stacklevel=3)
