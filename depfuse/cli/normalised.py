"""Warn where a user seems to have forgotten how his networks' inputs are normalised."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from depfuse.data import DataSet, calibration_loader
from depfuse.errors import DepfuseWarning
from depfuse.renorm.input_normalisation import IMAGES, Normalisation, forgotten_normalisation


def warn_of_normalisation(
    paths: Sequence[Path], models: Sequence[nn.Module], data: DataSet, device: torch.device
) -> None:
    """Give a `DepfuseWarning` with the values that fit, for networks to which the images come normalised otherwise."""
    if len(data.train) < 2:
        return
    images, _ = next(iter(calibration_loader(data, IMAGES, batch_size=IMAGES, device=device)))
    mean, std = data.preprocessing.mean or (0.0,), data.preprocessing.std or (1.0,)
    forgotten: dict[str, list[str]] = {}
    for path, model in zip(paths, models, strict=True):
        if found := forgotten_normalisation(model, images, mean, std):
            ways = " or ".join(_options(own) for own in found[:2])
            forgotten.setdefault(ways, []).append(str(path))
    for ways, names in forgotten.items():
        warnings.warn(
            f"{' and '.join(names)}: by the statistics of the first BatchNorm, the images of training were normalised"
            f" otherwise than these (mean {_numbers(mean)}, std {_numbers(std)}): what fits is {ways}",
            DepfuseWarning,
            stacklevel=3,
        )


def _options(found: Normalisation) -> str:
    sign = "=" if found.mean[0] < 0 else " "  # a value that begins with a hyphen would be read as an option
    return f"--mean{sign}{_numbers(found.mean)} --std {_numbers(found.std)}"


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)
