"""Conversion of a layer's input and output into the rows of a linear system."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from depfuse.refit.program.units import NORMALISATION, aten


@dataclass(frozen=True)
class Window:
    """Geometry of a layer's input.

    Attributes
    ----------
    kernel, stride, padding, dilation
        Of a convolution, per spatial dimension, the padding before and after it; empty for a linear layer.
    groups
        Number of groups G; the layer's input and output channels are G blocks.
    positions
        Number of places (output positions, tokens) in one image.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    positions: int

    @classmethod
    def of(cls, node: fx.Node) -> Window:
        """Read the geometry off an operation."""
        if node.target is NORMALISATION:  # a depthwise convolution with a kernel of one position
            _, channels, *sizes = node.args[0].meta["val"].shape  # type: ignore[union-attr]
            ones = (1,) * max(len(sizes), 1)  # features (N, C) are an image of one position
            return cls(ones, ones, ((0, 0),) * len(ones), ones, channels, math.prod(sizes))
        shape = tuple(node.meta["val"].shape)
        if node.target is aten.linear.default:
            return cls((), (), (), (), 1, math.prod(shape[1:-1]))
        weight = node.args[1].meta["val"].shape  # type: ignore[union-attr]
        dimensions = len(weight) - 2
        arguments: list[Any] = list(node.args[3:])
        if node.target is aten.convolution.default:
            arguments = [*arguments[:3], arguments[5]]
        groups = arguments[3] if len(arguments) > 3 else 1
        usual = (1, 0, 1)
        settings = [arguments[i] if i < len(arguments) else usual[i] for i in range(3)]
        stride, dilation = _each(settings[0], dimensions), _each(settings[2], dimensions)
        kernel = tuple(weight[2:])
        if isinstance(settings[1], str):
            sums = [(k - 1) * d if settings[1] == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
            padding = tuple((total // 2, total - total // 2) for total in sums)
        else:
            padding = tuple((pad, pad) for pad in _each(settings[1], dimensions))
        return cls(kernel, stride, padding, dilation, groups, math.prod(shape[2:]))

    def inputs(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Unfold the layer's input at each place: (G, N * places, kernel positions * channels of a group).

        Parameters
        ----------
        x
            (N, C, ...) for a convolution or a norm, (N, ..., C) for a linear layer.
        places
            Indices of positions, int64; all of them where None.
        """
        if not self.kernel:
            rows = x.reshape(len(x), -1, x.shape[-1])
            rows = rows if places is None else rows[:, places]
            return rows.reshape(1, -1, x.shape[-1])
        x = x[..., None] if x.dim() == 2 else x
        spatial = x.shape[2:]
        flat = x.movedim(1, -1).reshape(len(x), -1, x.shape[1])
        padded = any(side for pads in self.padding for side in pads)
        if math.prod(self.kernel) == 1 and places is None and flat.shape[1] == self.positions and not padded:
            windows = flat
        else:
            sources, outside = self._sources(spatial, places, x.device)
            windows = flat.index_select(1, sources)
            if padded:
                windows[:, outside] = 0.0
        count = len(places) if places is not None else self.positions
        size = math.prod(self.kernel)
        rows = windows.reshape(len(x) * count, size, self.groups, -1)
        return rows.permute(2, 0, 1, 3).reshape(self.groups, len(x) * count, -1)

    def outputs(self, y: Tensor, places: Tensor | None = None) -> Tensor:
        """Arrange the layer's output by place: (G, N * places, output channels of a group)."""
        y = y[..., None] if self.kernel and y.dim() == 2 else y
        rows = y.reshape(len(y), -1, y.shape[-1]) if not self.kernel else y.flatten(2).transpose(1, 2)
        if not self.kernel and y.dim() == 2:
            rows = y[:, None]
        rows = rows if places is None else rows[:, places]
        return rows.reshape(-1, self.groups, rows.shape[-1] // self.groups).transpose(0, 1)

    def gathered(self, y: Tensor, places: Tensor) -> Tensor:
        """Select places of the layer's output, with its channels on the same axis: (N, C, places) or (N, places, C)."""
        if not self.kernel:
            return y.reshape(len(y), -1, y.shape[-1])[:, places]
        return y.movedim(1, -1).reshape(len(y), -1, y.shape[1]).index_select(1, places.to(y.device)).transpose(1, 2)

    def matrix(self, weight: Tensor) -> Tensor:
        """Reshape a layer's weight to (G, inputs, outputs), the inputs in the order of `inputs`."""
        if not self.kernel:
            return weight.T[None]
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return parts.permute(0, 3, 2, 1).reshape(self.groups, -1, parts.shape[1])

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Invert `matrix` for a weight of this shape."""
        if not self.kernel:
            return matrix[0].T.contiguous()
        parts = matrix.reshape(self.groups, math.prod(self.kernel), shape[1], -1)
        return parts.permute(0, 3, 2, 1).reshape(shape)

    def _sources(self, spatial: torch.Size, places: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Compute flat positions in the input for every kernel position of every place, and which lie in the padding.

        Those in the padding have position 0.
        """
        index = torch.zeros(1, 1, dtype=torch.int64)
        outside = torch.zeros(1, 1, dtype=torch.bool)
        for size, kernel, stride, dilation, pads in zip(
            spatial, self.kernel, self.stride, self.dilation, self.padding, strict=True
        ):
            outputs = (size + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
            along = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation - pads[0]
            beyond = (along < 0) | (along >= size)
            # (places so far, 1, kernel so far, 1) with (1, outputs, 1, kernel)
            index = (index[:, None, :, None] * size + along.clamp(0, size - 1)[None, :, None]).flatten(2).flatten(0, 1)
            outside = (outside[:, None, :, None] | beyond[None, :, None]).flatten(2).flatten(0, 1)
        if places is not None:
            index, outside = index[places], outside[places]
        return index.reshape(-1).to(device), outside.reshape(-1).to(device)


def _each(value: Any, dimensions: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * dimensions if len(values) == 1 else values
