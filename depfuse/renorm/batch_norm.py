"""BatchNorm statistics recomputed on the merged network's own activations."""

from __future__ import annotations

import torch
from torch import nn

from depfuse.data.loader import Loader
from depfuse.errors import DataError

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def _tracked(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        module for module in model.modules() if isinstance(module, BATCH_NORM) and module.running_mean is not None
    ]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the network has BatchNorm layers that keep running statistics."""
    return bool(_tracked(model))


def reset_batch_norm(model: nn.Module, loader: Loader) -> None:
    """Set every BatchNorm's running mean and variance to their cumulative mean over all batches of the loader.

    One forward pass with batch statistics in the BatchNorm layers only (dropout stays off), without momentum, in
    batches as the loader gives them (Jordan et al. 2023, section 3: "reset"). Parameters and modes are left as they were.

    Raises
    ------
    DataError
        A batch has a single image: it has no variance.
    """
    layers = _tracked(model)
    if not layers:
        return
    if loader.count < 2:
        raise DataError(f"{loader.count} calibration image has no variance: BatchNorm reset needs at least 2")
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.training = True
    try:
        with torch.no_grad():
            for images, _ in loader:
                model(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
