"""What a single sample is, and how samples are stacked to batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate

from depfuse.errors import DataError
from depfuse.networks.copying import fit_example
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.batch_inputs import Signature, as_tensor, split_batch
from depfuse.text import first_line


def is_sample(first: Any, model: nn.Module, *, called: bool, listed: bool) -> bool:
    """Tell whether this is a single sample: the network runs on it as a batch of one, and not as it is.

    Parameters
    ----------
    first
        The first of what the data hold or yield.
    model, called
        The network, and whether it is run by a function of the user's, who gives batches.
    listed
        Whether the data are a list, of which images (C, H, W) are samples whatever they are of.

    Raises
    ------
    DataError
        It is the name of a file.
    """
    if isinstance(first, (str, Path)):
        raise DataError(
            f"calibration data are names of files, such as {first}: give their tensors, or load a folder or list of"
            " them by calibration_loader(load_data(...))"
        )
    if called:
        return False
    if isinstance(first, Image.Image):
        return True
    if isinstance(first, (Tensor, np.ndarray)):
        return _is_one(as_tensor(first), model, listed=listed)
    if not isinstance(first, (tuple, list, Mapping)) or not first:
        return False
    if not isinstance(first, Mapping) and isinstance(first[0], (Tensor, np.ndarray)) and not takes_several(model):
        return _is_one(as_tensor(first[0]), model, listed=listed)
    return not runs_on(model, first) and runs_on(model, collate([first]))


def _is_one(first: Tensor, model: nn.Module, *, listed: bool) -> bool:
    """Tell whether a tensor is one input of a network, and no batch."""
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first.dim() == 3 and convolution is not None:
        # It takes a single image (C, H, W), too, which is no batch of C rows.
        return listed or (len(first) == convolution.in_channels and runs_on(model, first[None]))
    return (first.dim() < 2 or not runs_on(model, first)) and runs_on(model, first[None])


def takes_several(model: nn.Module) -> bool:
    """Tell whether a network needs several inputs."""
    return len(Signature.of(model).required) > 1


def runs_on(model: nn.Module, batch: Any) -> bool:
    """Tell whether a network runs on a batch as it is."""
    try:
        inputs, _ = split_batch(batch, Signature.of(model))
        with torch.no_grad(), evaluating(model):
            run_network(model, fit_example(inputs, model))
    except Exception:  # whatever the user's network raises
        return False
    return True


def collate(samples: Sequence[Any]) -> Any:
    """Stack samples to a batch, pictures as tensors (C, H, W) in [0, 1].

    Raises
    ------
    DataError
        They have several shapes.
    """
    if any(leaf is None for sample in samples for leaf in tree_leaves(sample)):
        raise DataError(
            "a sample of the calibration data holds None, such as a label that is missing: give the inputs alone, or a"
            " DataLoader with a collate function"
        )
    try:
        return default_collate([_without_pictures(sample) for sample in samples])
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"samples of the calibration data do not make a batch ({first_line(error)}): give them one shape, or a "
            "DataLoader with a collate function"
        ) from error


def collated(samples: Iterable[Any], batch_size: int) -> Iterator[Any]:
    """Stack single samples to batches."""
    left = iter(samples)
    while found := list(itertools.islice(left, batch_size)):
        yield collate(found)


def _without_pictures(value: Any) -> Any:
    if isinstance(value, Image.Image):
        pixels = torch.from_numpy(np.array(value if value.mode in ("L", "RGB") else value.convert("RGB")))
        return (pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)).float() / 255
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_without_pictures, value))
    if isinstance(value, dict):
        return {key: _without_pictures(entry) for key, entry in value.items()}
    return value
