"""Inputs of networks: the shape of an example, and a check that images fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from depfuse.errors import ArchitectureError, DataError
from depfuse.models.architecture import NETWORKS, Architecture, parse_architecture
from depfuse.models.registry import build_network
from depfuse.networks.forward import Example, run_network
from depfuse.networks.leaves import tensors_in
from depfuse.networks.running import evaluating, raised_in
from depfuse.text import first_line

_USUAL_SIDE = 224  # of the images of ImageNet, where a library says nothing
# Groups do not depend on the size of images, but time does: networks for larger ones get the usual size if they run.
_LARGEST_SIDE = 300
# Tried in this order on networks that do not declare their input shape.
_COMMON_SHAPES = ((3, 32, 32), (1, 28, 28), (3, 224, 224), (1, 8, 8), (3, 299, 299))


def example_shape(arch: str, model: nn.Module | None = None) -> tuple[int, ...]:
    """Find the shape (C, H, W) of images for an architecture, without any data.

    Built-in networks declare it, torchvision and timm in the metadata of their weights; for a user's own network a few
    common shapes are tried.

    Parameters
    ----------
    arch
        As for `build_network`.
    model
        The network, where it has been built already.

    Raises
    ------
    ArchitectureError
        The architecture does not resolve, or its network takes none of the common shapes.
    """
    architecture = parse_architecture(arch)
    if architecture.source == "" and architecture.name in NETWORKS:
        channels, height, width = NETWORKS[architecture.name].example
        return int(architecture.arguments.get("in_channels", channels)), height, width
    if architecture.source == "torchvision":
        return _of_torchvision(architecture)
    network = build_network(arch) if model is None else model
    if architecture.source == "timm":
        return _of_timm(architecture, network)
    first = next(network.parameters(), torch.empty(0))
    failures: dict[str, None] = {}
    for shape in _COMMON_SHAPES:
        failure = _failure(network, torch.zeros(1, *shape, dtype=first.dtype, device=first.device))
        if failure is None:
            return shape
        failures[failure] = None
    if len(failures) == 1:  # then it is not the shape
        raise ArchitectureError(f"the forward pass of {arch} raises on inputs of any shape: {next(iter(failures))}")
    tried = ", ".join("x".join(map(str, shape)) for shape in _COMMON_SHAPES)
    raise ArchitectureError(f"{arch} takes none of the input shapes {tried}: give one of its own, with `example`")


def _of_torchvision(architecture: Architecture) -> tuple[int, int, int]:
    """Return the smallest image size of the network's published weights."""
    from torchvision.models import get_model_weights

    size = architecture.arguments.get("image_size", architecture.arguments.get("input_size"))
    if size is None:
        sides = []
        for weights in get_model_weights(architecture.name):
            side = getattr(weights.transforms, "keywords", {}).get("crop_size")
            if isinstance(side, int):  # the images of videos have two
                smallest = max(weights.meta.get("min_size", (1, 1)))
                sides.append(max(_handy(side), smallest))
        size = min(sides, default=_USUAL_SIDE)
    height, width = (size, size) if isinstance(size, int) else size
    return 3, int(height), int(width)


def _handy(side: int) -> int:
    return side if side <= _LARGEST_SIDE else _USUAL_SIDE


def _of_timm(architecture: Architecture, network: nn.Module) -> tuple[int, int, int]:
    described: dict[str, Any] = getattr(network, "default_cfg", None) or {}
    channels, height, width = described.get("input_size", (3, _USUAL_SIDE, _USUAL_SIDE))
    size = architecture.arguments.get("img_size")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
    channels = int(architecture.arguments.get("in_chans", channels))
    smaller = channels, _handy(height), _handy(width)
    if size is None and max(height, width) > _LARGEST_SIDE and not described.get("fixed_input_size", False):
        first = next(network.parameters(), torch.empty(0))
        if _failure(network, torch.zeros(1, *smaller, dtype=first.dtype, device=first.device)) is None:
            return smaller
    return channels, int(height), int(width)


def check_input(model: nn.Module, example: Example, *, classes: int | None = None) -> None:
    """Raise `DataError` unless the network takes the example and gives a score for each class.

    Parameters
    ----------
    model
        The network; left as it was.
    example
        One or more inputs (N, ...).
    classes
        Number of classes that the labels name; ``None`` leaves the outputs alone.
    """
    outcome = _failure(model, example)
    if isinstance(outcome, str):
        what = "images" if isinstance(example, Tensor) and example.dim() == 4 else "inputs"
        advice = "; give them as (N, C, H, W)" if _fits_channels_first(model, example) else ""
        raise DataError(f"{what} of shape {_shapes(example)} do not fit {type(model).__name__}: {outcome}{advice}")
    if classes is not None:
        with torch.no_grad(), evaluating(model):
            outputs = run_network(model, example)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            raise DataError(
                f"{type(model).__name__} does not give one row of class scores per image, by which alone a network is "
                "trained on labels"
            )
        if outputs.shape[1] < classes:
            raise DataError(
                f"{type(model).__name__} has {outputs.shape[1]} outputs, "
                f"but the labels name {classes} classes: "
                f"labels from {outputs.shape[1]} on are out of range"
            )


def _fits_channels_first(model: nn.Module, example: Example) -> bool:
    """Tell whether a network runs on images (N, H, W, C) once their channels come first."""
    channels_last = isinstance(example, Tensor) and example.dim() == 4 and example.shape[-1] < example.shape[1]
    return channels_last and _failure(model, example.movedim(-1, 1)) is None  # type: ignore[union-attr]


def _shapes(example: Example) -> str:
    """Write the shapes of the tensors of an input without their first axis: 3x32x32, or several with commas."""
    leaves = tensors_in(example)
    return ", ".join("x".join(map(str, leaf.shape[1:])) or "one number" for leaf in leaves)


def _failure(model: nn.Module, example: Example) -> str | None:
    """Explain why the network does not run on the example; ``None`` if it does."""
    try:
        with torch.no_grad(), evaluating(model):
            run_network(model, example)
    except Exception as error:  # a network may raise anything on images it was not made for
        reason = first_line(error)
        place = raised_in(model, error)
        return f"{reason} (in {place})" if place else reason
    return None
