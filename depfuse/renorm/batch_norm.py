"""BatchNorm statistics recomputed on the merged network's own activations."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.errors import DataError
from depfuse.restating import restate
from depfuse.running import choose_layout, evaluating

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def _tracked(model: nn.Module, kept: Collection[str] = ()) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORM) and module.running_mean is not None and name not in kept
    ]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the network has BatchNorm layers that keep running statistics."""
    return bool(_tracked(model))


def reset_batch_norm(model: nn.Module, loader: Loader, kept: Collection[str] = ()) -> None:
    """Set every BatchNorm's running mean and variance to their cumulative mean over all batches of the loader.

    One forward pass with batch statistics in the BatchNorm layers only (dropout stays off), without momentum, in
    batches as the loader gives them (Jordan et al. 2023, section 3: "reset"). Parameters and modes stay as
    they were, and so do the statistics of layers that the pass does not reach (auxiliary heads) and of those named by
    `kept`, which give what they gave before.

    Raises
    ------
    DataError
        A batch has a single image: it has no variance.
    """
    layers = _tracked(model, kept)
    if not layers:
        return
    if loader.count < 2:
        raise DataError(f"{loader.count} calibration image has no variance: BatchNorm reset needs at least 2")
    momenta = [(layer, layer.momentum, layer.training) for layer in layers]
    buffers = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    layout: torch.memory_format | None = None
    with torch.no_grad(), evaluating(model):
        try:
            for images, _ in loader:
                layout = layout or choose_layout(model, images[:1])[0]
                for layer in layers if not layers[0].training else ():
                    layer.reset_running_stats()
                    layer.momentum, layer.training = None, True
                model(images.contiguous(memory_format=layout))
        finally:
            for layer, momentum, training in momenta:
                layer.momentum, layer.training = momentum, training
    for layer, before in zip(layers, buffers, strict=True):
        if layer.num_batches_tracked == 0:  # an auxiliary head, which evaluation does not run
            layer.load_state_dict(before, strict=False)


def settle_batch_norm(model: nn.Module, loader: Loader) -> None:
    """Give every BatchNorm the statistics of what it takes in, and leave the network's function as it is.

    Scale and shift make up for the other mean and variance. Layers without both, and those that the images do not
    reach, stay as they were.
    """
    sums: dict[nn.Module, tuple[float, Tensor, Tensor]] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().double().transpose(0, 1).flatten(1)
        count, total, square = sums.get(layer, (0.0, torch.zeros(()), torch.zeros(())))
        sums[layer] = (count + rows.shape[1], total.to(rows) + rows.sum(1), square.to(rows) + rows.square().sum(1))

    layers = [layer for layer in _tracked(model) if layer.affine]
    with torch.no_grad(), evaluating(model):
        layout = choose_layout(model, next(iter(loader))[0][:1])[0]
        handles = [layer.register_forward_pre_hook(watch) for layer in layers]
        try:
            for images, _ in loader:
                model(images.contiguous(memory_format=layout))
        finally:
            for handle in handles:
                handle.remove()
    with torch.no_grad():
        for layer in layers:
            if layer not in sums or sums[layer][0] < 2:
                continue
            count, total, square = sums[layer]
            mean = total / count
            variance = (square / count - mean * mean).clamp_min(0.0) * (count / (count - 1))
            assert layer.running_mean is not None
            assert layer.running_var is not None
            restate(layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.eps, mean, variance)
