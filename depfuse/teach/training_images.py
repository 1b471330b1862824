"""Divide training images: those to train on, those that judge, and some that prepare a training."""

from __future__ import annotations

from dataclasses import replace

import torch

from depfuse.data import DataSet, calibration_loader
from depfuse.data.contents import are_among
from depfuse.data.inputs import Ragged
from depfuse.data.loader import Loader, calibration_order
from depfuse.teach.self_training import KnownLabels

HELD_SHARE = 1 / 16  # of the training images: they tell whether a taught network is nearer to its teacher
HELD_MOST = 500
JUDGED_AT_ONCE = 250
STATISTICS_IMAGES = 2000


def few_images(data: DataSet, device: torch.device | str, seed: int) -> Loader:
    """Draw the images that steps are prepared on."""
    return calibration_loader(data, STATISTICS_IMAGES, device=device, seed=seed)


def apart_from_judges(calibration: Loader, data: DataSet, seed: int) -> Loader:
    """Leave out of calibration the images that judge a training, however they came to be there.

    A network that is fitted to them as well is nearer to its teacher there than anywhere else, and whatever it learns
    afterwards takes it further away. All images are kept where all but one judge.
    """
    if not _held(len(data.train)):
        return calibration
    others = torch.nonzero(~are_among(calibration, hold_out(data, calibration.device, seed)[1])).flatten()
    return calibration.taking(others) if 1 < len(others) < calibration.count else calibration


def hold_out(data: DataSet, device: torch.device | str, seed: int) -> tuple[DataSet, Loader]:
    """Hold out the last of the images that calibration draws, or none of so few that two cannot be spared.

    Returns
    -------
    DataSet
        What is left to train on, in the order of the data.
    Loader
        Those held out; some of all where none are.
    """
    count = len(data.train)
    held = _held(count)
    if not held:
        return data, few_images(data, device, seed)
    order = calibration_order(count, seed)
    last = order[count - held :]
    judged = Loader(
        data.train.take(last.sort().values if isinstance(data.train.images, Ragged) else last),
        data.preprocessing,
        batch_size=JUDGED_AT_ONCE,
        device=device,
    )
    return replace(data, train=data.train.take(order[: count - held].sort().values)), judged


def known_labels(data: DataSet, left: int, seed: int, labelled: int) -> KnownLabels | None:
    """Find the images whose labels are read among the `left` ones that `hold_out` left to train on.

    They are the first `labelled` ones that calibration draws.
    """
    if not labelled or not data.train.of_classes:
        return None
    count = len(data.train)
    order = calibration_order(count, seed)
    kept = order[:left].sort().values if left < count else torch.arange(count)
    first = order[: min(labelled, left)]
    return KnownLabels(torch.searchsorted(kept, first), data.train.required_labels[first])


def _held(count: int) -> int:
    """Count the images that judge a training on `count` images, 0 where two cannot be spared."""
    held = min(HELD_MOST, round(HELD_SHARE * count))
    return held if held > 1 else 0
