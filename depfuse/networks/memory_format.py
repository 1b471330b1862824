"""Memory layout of images: the fastest that a network and a processor support."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depfuse.errors import DataError
from depfuse.networks.forward import Example, in_layout, run_network
from depfuse.networks.leaves import tensors_in
from depfuse.text import first_line

FEW = 16  # input channels below which a strided convolution of kernel 1 is differentiated in plain layout
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
    """Choose the memory format of a network's inputs by running it on one image (1, C, H, W); return it and the output.

    On a CPU, channels last is 15 to 25 % faster for convolutions in float32. A network that flattens with `view` fails
    in it, so the plain format is tried next.

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
    assert failure is not None
    if isinstance(image, Tensor) and image.dim() == 4:
        what, check = f"images of shape {tuple(image.shape[1:])}", "the data set, its size and its channels"
    else:
        shapes = [str(tuple(tensor.shape)) for tensor in tensors_in(image)]
        what, check = f"inputs of shape {', '.join(shapes)}", "what a batch holds, and how it is given to the network"
    raise DataError(f"{what} do not fit the network ({first_line(failure)}): check {check}") from failure


def takes_channels_last(model: nn.Module, images: Example) -> bool:
    """Tell whether a network in evaluation mode runs on images (N, C, H, W) in channels-last layout."""
    try:
        with torch.no_grad():
            run_network(model, in_layout(images, torch.channels_last))
    except torch.cuda.OutOfMemoryError:
        raise
    except _IMPOSSIBLE:
        return False
    return True


def differentiable(device: torch.device) -> AbstractContextManager[object]:
    """Make every convolution run inside safe to differentiate; enter it around forward passes with gradients."""
    return _DifferentiableConvolutions() if device.type == "cpu" else nullcontext()


class _DifferentiableConvolutions(TorchFunctionMode):
    """Mode in which a CPU can differentiate every convolution, whatever the layout of its input.

    Without AVX-512, oneDNN (up to 3.12) writes past the end of its memory when it computes the weight gradient of a
    convolution of kernel 1 and stride 2 in channels-last layout, for 2 to 6 input channels (outputs, if transposed).
    Here, strided convolutions of kernel 1 with fewer than `FEW` such channels get inputs and weights in plain layout,
    on every CPU, so that a network has one result.

    The mode belongs to the thread that enters it, and need not be active in the backward pass.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        if func in _CONVOLUTIONS:
            arguments = {**dict(zip(_ARGUMENTS, args, strict=False)), **keywords}
            if _endangered(arguments["weight"], arguments.get("stride", 1)):
                args = (*map(_plain, args[:2]), *args[2:])
                keywords |= {name: _plain(keywords[name]) for name in _ARGUMENTS[:2] if name in keywords}
        return func(*args, **keywords)


def _endangered(weight: Tensor, stride: int | Sequence[int]) -> bool:
    """Tell whether a convolution on a CPU has a kernel of one position, a stride, and few channels."""
    strides = (stride,) if isinstance(stride, int) else stride
    one_position = all(size == 1 for size in weight.shape[2:])
    return weight.device.type == "cpu" and one_position and max(strides) > 1 and weight.shape[1] < FEW


def _plain(tensor: Tensor) -> Tensor:
    """Return the tensor in plain layout; strides are compared, since sizes of one make `is_contiguous` ambiguous."""
    strides: list[int] = []
    step = 1
    for size in reversed(tensor.shape):
        strides.insert(0, step)
        step *= size
    return tensor if tensor.stride() == tuple(strides) else tensor.clone(memory_format=torch.contiguous_format)
