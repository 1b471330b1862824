"""Conversion of a layer's input and output into the rows of a linear system."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from depfuse.refit.program.convolutions import Convolution, aten
from depfuse.refit.program.units import NORMALISATION


@dataclass(frozen=True)
class Window:
    """Geometry of a layer's input.

    Attributes
    ----------
    layer
        The convolution; None for a linear layer.
    positions
        Number of places (output positions, tokens) in one image.
    """

    layer: Convolution | None
    positions: int

    @property
    def groups(self) -> int:
        """Number of groups G; the layer's input and output channels are G blocks."""
        return 1 if self.layer is None else self.layer.groups

    @classmethod
    def of(cls, node: fx.Node) -> Window:
        """Read the geometry off an operation."""
        if node.target is NORMALISATION:  # a depthwise convolution with a kernel of one position
            _, channels, *sizes = node.args[0].meta["val"].shape  # type: ignore[union-attr]
            ones = (1,) * max(len(sizes), 1)  # features (N, C) are an image of one position
            layer = Convolution(ones, ones, ones, ((0, 0),) * len(ones), ones, channels, False)
            return cls(layer, math.prod(sizes))
        shape = tuple(node.meta["val"].shape)
        if node.target is aten.linear.default:
            return cls(None, math.prod(shape[1:-1]))
        return cls(Convolution.of(node), math.prod(shape[2:]))

    def inputs(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Unfold the layer's input at each place: (G, N * places, kernel positions * channels of a group).

        Parameters
        ----------
        x
            (N, C, ...) for a convolution or a norm, (N, ..., C) for a linear layer.
        places
            Indices of positions, int64; all of them where None.
        """
        if self.layer is None:
            rows = x.reshape(len(x), -1, x.shape[-1])
            rows = rows if places is None else rows[:, places]
            return rows.reshape(1, -1, x.shape[-1])
        x = x[..., None] if x.dim() == 2 else x
        spatial = x.shape[2:]
        flat = x.movedim(1, -1).reshape(len(x), -1, x.shape[1])
        size = math.prod(self.layer.kernel)
        whole = not any(side for pads in self.layer.padding for side in pads) and set(self.layer.spread) == {1}
        if size == 1 and places is None and flat.shape[1] == self.positions and whole:
            windows = flat
        else:
            sources, outside = _sources(self.layer, spatial, places, x.device)
            windows = flat.index_select(1, sources)
            if not whole:
                windows[:, outside] = 0.0
        count = len(places) if places is not None else self.positions
        rows = windows.reshape(len(x) * count, size, self.groups, -1)
        return rows.permute(2, 0, 1, 3).reshape(self.groups, len(x) * count, -1)

    def outputs(self, y: Tensor, places: Tensor | None = None) -> Tensor:
        """Arrange the layer's output by place: (G, N * places, output channels of a group)."""
        y = y[..., None] if self.layer is not None and y.dim() == 2 else y
        rows = y.reshape(len(y), -1, y.shape[-1]) if self.layer is None else y.flatten(2).transpose(1, 2)
        if self.layer is None and y.dim() == 2:
            rows = y[:, None]
        rows = rows if places is None else rows[:, places]
        return rows.reshape(-1, self.groups, rows.shape[-1] // self.groups).transpose(0, 1)

    def gathered(self, y: Tensor, places: Tensor) -> Tensor:
        """Select places of the layer's output, with its channels on the same axis: (N, C, places) or (N, places, C)."""
        if self.layer is None:
            return y.reshape(len(y), -1, y.shape[-1])[:, places]
        return y.movedim(1, -1).reshape(len(y), -1, y.shape[1]).index_select(1, places.to(y.device)).transpose(1, 2)

    def matrix(self, weight: Tensor) -> Tensor:
        """Reshape a layer's weight to (G, inputs, outputs), the inputs in the order of `inputs`."""
        if self.layer is None:
            return weight.T[None]
        weight = self.layer.plain(weight)
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return parts.permute(0, 3, 2, 1).reshape(self.groups, -1, parts.shape[1])

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Invert `matrix` for a weight of this shape."""
        if self.layer is None:
            return matrix[0].T.contiguous()
        kernel = self.layer.kernel
        parts = matrix.reshape(self.groups, math.prod(kernel), -1, matrix.shape[-1])
        plain = parts.permute(0, 3, 2, 1).reshape(-1, parts.shape[2], *kernel)
        return self.layer.own(plain).reshape(shape)


def _sources(
    layer: Convolution, spatial: torch.Size, places: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Compute flat positions in the input for every kernel position of every place, and which of these see zeros.

    Those in the padding or between the input's places see zeros, and have position 0.
    """
    index = torch.zeros(1, 1, dtype=torch.int64)
    outside = torch.zeros(1, 1, dtype=torch.bool)
    for size, kernel, stride, spread, dilation, pads in zip(
        spatial, layer.kernel, layer.stride, layer.spread, layer.dilation, layer.padding, strict=True
    ):
        outputs = ((size - 1) * spread + 1 + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
        along = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation - pads[0]
        beyond = (along < 0) | (along > (size - 1) * spread) | (along % spread > 0)
        source = torch.where(beyond, 0, along // spread)
        # (places so far, 1, kernel so far, 1) with (1, outputs, 1, kernel)
        index = (index[:, None, :, None] * size + source[None, :, None]).flatten(2).flatten(0, 1)
        outside = (outside[:, None, :, None] | beyond[None, :, None]).flatten(2).flatten(0, 1)
    if places is not None:
        index, outside = index[places], outside[places]
    return index.reshape(-1).to(device), outside.reshape(-1).to(device)
