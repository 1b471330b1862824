"""What goes into a network: an example's shape, and whether images fit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from depfuse.errors import ArchitectureError, DataError
from depfuse.models.registry import NETWORKS, build_network, parse_architecture

# Tried in this order on networks that do not say what they take.
_COMMON_SHAPES = ((3, 32, 32), (1, 28, 28), (3, 224, 224), (1, 8, 8), (3, 299, 299))


def example_shape(arch: str, model: nn.Module | None = None) -> tuple[int, ...]:
    """Find the shape (C, H, W) of an image that suits the architecture, without any data at hand.

    The built-in networks, torchvision's and timm's say it themselves; on a user's own network a few
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
        side = 299 if architecture.name == "inception_v3" else architecture.arguments.get("image_size", 224)
        return 3, int(side), int(side)
    network = build_network(arch) if model is None else model
    if architecture.source == "timm":
        size = getattr(network, "default_cfg", {}).get("input_size", (3, 224, 224))
        return int(architecture.arguments.get("in_chans", size[0])), int(size[1]), int(size[2])
    first = next(network.parameters(), torch.empty(0))
    for shape in _COMMON_SHAPES:
        if _failure(network, torch.zeros(1, *shape, dtype=first.dtype, device=first.device)) is None:
            return shape
    tried = ", ".join("x".join(map(str, shape)) for shape in _COMMON_SHAPES)
    raise ArchitectureError(f"{arch} takes none of the input shapes {tried}: give its own with --input-shape C,H,W")


def check_input(model: nn.Module, example: Tensor, *, classes: int | None = None) -> None:
    """Raise `DataError` unless the network takes the example and gives a score for each class.

    Parameters
    ----------
    model
        The network; left as it was.
    example
        One or more inputs (N, C, H, W).
    classes
        Number of classes that the labels name; ``None`` leaves the outputs alone.
    """
    shape = "x".join(map(str, example.shape[1:]))
    outcome = _failure(model, example)
    if isinstance(outcome, str):
        raise DataError(f"images of shape {shape} do not fit {type(model).__name__}: {outcome}")
    if classes is not None:
        with torch.no_grad():
            outputs = _evaluate(model, example)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            raise DataError(f"{type(model).__name__} does not give one row of class scores per image")
        if outputs.shape[1] < classes:
            raise DataError(
                f"{type(model).__name__} has {outputs.shape[1]} outputs, "
                f"but the labels name {classes} classes: "
                f"labels from {outputs.shape[1]} on are out of range"
            )


def _failure(model: nn.Module, example: Tensor) -> str | None:
    """Why the network does not take the example; ``None`` when it does."""
    try:
        with torch.no_grad():
            _evaluate(model, example)
    except Exception as error:  # a network may raise anything on images it was not made for
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _evaluate(model: nn.Module, example: Tensor) -> object:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return model(example)
    finally:
        for module, mode in modes:
            module.training = mode
