"""Running statistics recomputed on the merged network's own activations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.inputs import take_samples
from depfuse.data.loader import Loader
from depfuse.distributed.team import all_sum
from depfuse.errors import DataError
from depfuse.networks.batch_norm import set_statistics_keeping_function
from depfuse.networks.forward import in_layout, run_network
from depfuse.networks.memory_format import choose_layout
from depfuse.networks.running import Hook, evaluating, hooked
from depfuse.progress import work

BATCH_NORM = nn.modules.batchnorm._BatchNorm
WITH_STATISTICS = nn.modules.batchnorm._NormBase  # BatchNorm and InstanceNorm
AT_ONCE = 250  # images per batch of statistics; those of fewer are far from the statistics of all
Statistics = dict[str, list[Tensor]]  # name of a layer -> count, two sums (C,), float64


def _tracked(model: nn.Module, unchanged: Collection[str] = ()) -> dict[str, nn.modules.batchnorm._NormBase]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, WITH_STATISTICS) and module.running_mean is not None and name not in unchanged
    }


def has_running_statistics(model: nn.Module) -> bool:
    """Tell whether the network has BatchNorm layers, or InstanceNorm layers, with running statistics."""
    return bool(_tracked(model))


def untracked_statistics(model: nn.Module) -> list[str]:
    """List running statistics that no layer of torch's has: a module gives them to `torch.batch_norm` itself."""
    return [
        f"{name}.{key}".removeprefix(".")
        for name, module in model.named_modules()
        if not isinstance(module, WITH_STATISTICS)
        for key, _ in module.named_buffers(recurse=False)
        if "running_mean" in key or "running_var" in key
    ]


def reset_batch_norm(model: nn.Module, loader: Loader, unchanged: Collection[str] = ()) -> None:
    """Set every BatchNorm's running mean and variance to their cumulative mean over batches of all images.

    One forward pass with batch statistics in the BatchNorm layers only (dropout stays off), without momentum, in
    batches of `AT_ONCE` images whatever the loader's are (Jordan et al. 2023, section 3: "reset"). InstanceNorm layers
    with running statistics get the mean of those of single images, as in training. Parameters and modes stay as they
    were, and so do the statistics of layers that the pass does not reach (auxiliary heads) and of those
    named by `unchanged`.

    Raises
    ------
    DataError
        There is a single image: it has no variance.
    """
    layers = _tracked(model, unchanged)
    if not layers:
        return
    if loader.count < 2:
        raise DataError(f"{loader.count} calibration image has no variance: BatchNorm reset needs at least 2")
    statistics = all_sum(_sums_over_batches, loader.in_batches(AT_ONCE), model, list(layers))
    for name, layer in layers.items():
        count, mean, variance = statistics[name]
        if count == 0:  # an auxiliary head, which evaluation does not run
            continue
        layer.reset_running_stats()
        _buffer(layer.running_mean).copy_(mean / count)
        _buffer(layer.running_var).copy_(variance / count)
        _buffer(layer.num_batches_tracked).fill_(int(count))


def reset_keeping_function(model: nn.Module, loader: Loader) -> None:
    """Set every BatchNorm's statistics to those of its inputs without changing the network's function.

    Scale and shift compensate for the other mean and variance. Layers without both, and those that the images do not
    reach, stay as they were.
    """
    layers = {name: layer for name, layer in _tracked(model).items() if isinstance(layer, BATCH_NORM) and layer.affine}
    statistics = all_sum(_sums_of_inputs, loader, model, list(layers))
    with torch.no_grad():
        for name, layer in layers.items():
            count, total, square = statistics[name]
            if count < 2:
                continue
            mean = total / count
            variance = (square / count - mean * mean).clamp_min(0.0) * (count / (count - 1))
            running_mean, running_var = _buffer(layer.running_mean), _buffer(layer.running_var)
            set_statistics_keeping_function(
                layer.weight, layer.bias, running_mean, running_var, layer.eps, mean, variance
            )


def _sums_over_batches(loader: Loader, model: nn.Module, names: Sequence[str]) -> tuple[Statistics, list[Tensor]]:
    """Count batches, and sum their means and variances; the network is left as it was."""
    layers = {name: layer for name, layer in _tracked(model).items() if name in names}
    momenta = [(layer, layer.momentum, layer.training) for layer in layers.values()]
    buffers = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers.values()]

    def begin() -> None:
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum, layer.training = 1.0, True

    try:
        # With a momentum of one, running statistics are the last batch's.
        return _watched(loader, model, layers, lambda layer, _: (1.0, layer.running_mean, layer.running_var), begin)
    finally:
        for (layer, momentum, training), before in zip(momenta, buffers, strict=True):
            layer.momentum, layer.training = momentum, training
            layer.load_state_dict(before, strict=False)


def _sums_of_inputs(loader: Loader, model: nn.Module, names: Sequence[str]) -> tuple[Statistics, list[Tensor]]:
    """Count samples, and sum the layers' inputs and their squares."""

    def seen(_: nn.Module, inputs: Tensor) -> Sequence[float | Tensor]:
        rows = inputs.detach().double().transpose(0, 1).flatten(1)
        return rows.shape[1], rows.sum(1), rows.square().sum(1)

    return _watched(loader, model, {name: model.get_submodule(name) for name in names}, seen)


def _watched(
    loader: Loader,
    model: nn.Module,
    layers: Mapping[str, Any],
    seen: Callable[[Any, Tensor], Sequence[float | Tensor]],
    begin: Callable[[], None] = lambda: None,
) -> tuple[Statistics, list[Tensor]]:
    """Sum figures of each layer and its input, each time that it runs, in evaluation mode."""
    statistics = {}
    for name, layer in layers.items():
        nothing = torch.zeros_like(layer.running_mean, dtype=torch.float64)
        statistics[name] = [nothing.new_zeros(()), nothing, nothing.clone()]

    def watch(name: str) -> Hook:
        def add(layer: nn.Module, inputs: Any, _: Tensor) -> None:
            for total, value in zip(statistics[name], seen(layer, inputs[0]), strict=True):
                total += value

        return add

    layout: torch.memory_format | None = None
    with ExitStack() as stack, torch.no_grad(), evaluating(model):
        for images, _ in work().within(loader, "renewing statistics"):
            if layout is None:
                layout = choose_layout(model, take_samples(images, slice(0, 1)))[0]
                stack.enter_context(hooked(model, {name: watch(name) for name in layers}))
                begin()
            run_network(model, in_layout(images, layout))
    return statistics, [total for totals in statistics.values() for total in totals]


def _buffer(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer
