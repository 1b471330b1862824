"""Memory layout of images: which is fastest, and which a network and a processor can take."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from depfuse.errors import DataError
from depfuse.networks.calling import Example, in_layout, run_network

FEW = 16
"""Input channels below which a strided convolution of kernel 1 is not differentiated in channels-last layout."""
_aten = torch.ops.aten
_CONVOLUTIONS = frozenset(
    {
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.conv_transpose1d,
        F.conv_transpose2d,
        F.conv_transpose3d,
        torch.convolution,
        _aten.conv1d.default,
        _aten.conv2d.default,
        _aten.conv3d.default,
        _aten.conv1d.padding,
        _aten.conv2d.padding,
        _aten.conv3d.padding,
        _aten.convolution.default,
    }
)
_ARGUMENTS = ("input", "weight", "bias", "stride")
_IMPOSSIBLE = (RuntimeError, ValueError, IndexError, AssertionError)


def choose_layout(model: nn.Module, image: Example) -> tuple[torch.memory_format, Any]:
    """Try a network on one image (1, C, H, W); the memory format its inputs should have, and its output.

    On a CPU, channels last is 15 to 25 % faster for convolutions in float32. A network that flattens
    with `view` cannot take it, so the plain format is tried after it.

    Raises
    ------
    DataError
        The image does not fit the network.
    """
    convolutional = isinstance(image, Tensor) and image.device.type == "cpu" and image.dim() == 4
    layouts = ([torch.channels_last] if convolutional else []) + [torch.contiguous_format]
    failure: Exception | None = None
    for layout in layouts:
        try:
            return layout, run_network(model, in_layout(image, layout))
        except torch.cuda.OutOfMemoryError:
            raise
        except _IMPOSSIBLE as error:
            failure = error
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    if isinstance(image, Tensor) and image.dim() == 4:
        what, check = f"images of shape {tuple(image.shape[1:])}", "the data set, its size and its channels"
    else:
        shapes = [str(tuple(leaf.shape)) for leaf in tree_leaves(image) if isinstance(leaf, Tensor)]
        what, check = f"inputs of shape {', '.join(shapes)}", "what a batch holds, and how it is given to the network"
    raise DataError(f"{what} do not fit the network ({reason}): check {check}") from failure


def takes_channels_last(model: nn.Module, images: Example) -> bool:
    """Whether a network in evaluation mode runs on images (N, C, H, W) in channels-last layout."""
    try:
        with torch.no_grad():
            run_network(model, in_layout(images, torch.channels_last))
    except torch.cuda.OutOfMemoryError:
        raise
    except _IMPOSSIBLE:
        return False
    return True


def differentiable(device: torch.device) -> AbstractContextManager[object]:
    """Enter where a network is run of which gradients will be taken: every convolution can be differentiated then."""
    return _DifferentiableConvolutions() if device.type == "cpu" else nullcontext()


class _DifferentiableConvolutions(TorchFunctionMode):
    """Run networks on a CPU so that every convolution can be differentiated, whatever layout its input has.

    Without AVX-512, oneDNN (3.12, and those before it) writes past the end of its memory where it differentiates a
    convolution of kernel 1 and stride 2 by its weights in channels-last layout: for 2 to 6 input channels, or that many
    outputs of a transposed one. Convolutions of kernel 1 with any stride and fewer than `FEW` such channels get inputs
    and weights in plain layout here, on every CPU: the same network has one result.

    The mode is of the thread that enters it. It need not be active while the backward pass runs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        if func in _CONVOLUTIONS:
            given = {**dict(zip(_ARGUMENTS, args, strict=False)), **keywords}
            if _endangered(given["weight"], given.get("stride", 1)):
                args = (*map(_plain, args[:2]), *args[2:])
                keywords |= {name: _plain(keywords[name]) for name in _ARGUMENTS[:2] if name in keywords}
        return func(*args, **keywords)


def _endangered(weight: Tensor, stride: int | Sequence[int]) -> bool:
    """Whether a convolution has a kernel of one position, a stride, and few channels."""
    strides = (stride,) if isinstance(stride, int) else stride
    one_position = all(size == 1 for size in weight.shape[2:])
    return weight.device.type == "cpu" and one_position and max(strides) > 1 and weight.shape[1] < FEW


def _plain(tensor: Tensor) -> Tensor:
    """The same in plain layout; sizes of one make strides ambiguous, so they are compared and not asked about."""
    strides: list[int] = []
    step = 1
    for size in reversed(tensor.shape):
        strides.insert(0, step)
        step *= size
    return tensor if tensor.stride() == tuple(strides) else tensor.clone(memory_format=torch.contiguous_format)
