"""Arguments of convolutions, transposed ones among them, as a program's operations have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.convolution.default,
    *TRANSPOSED,
)


@dataclass(frozen=True)
class Convolution:
    """What a convolution does, per spatial dimension.

    A transposed one of stride s is a convolution of stride 1 with the mirrored kernel, of its input with s - 1 zeros
    between neighbours (Dumoulin & Visin 2016, section 4).

    Attributes
    ----------
    kernel, stride, dilation
        As for a convolution that is not transposed.
    spread
        The input's places lie so far apart, with zeros between them: the stride of a transposed convolution, else 1.
    padding
        Before and after the spread input; negative where it is cut.
    groups
        Number of groups.
    transposed
        Whether the weight has the input's channels first, and its kernel is mirrored.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    spread: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool

    @classmethod
    def of(cls, node: fx.Node) -> Convolution:
        """Read the arguments of an operation of `CONVOLUTIONS`."""
        kernel = tuple(node.args[1].meta["val"].shape[2:])  # type: ignore[union-attr]
        axes, given = len(kernel), list[Any](node.args[3:])
        transposed = node.target in TRANSPOSED
        if node.target is aten.convolution.default:
            stride, padding, dilation, transposed, beyond, groups = given
        elif transposed:
            stride, padding, beyond, groups, dilation = _completed(given, (1, 0, 0, 1, 1))
        else:
            stride, padding, dilation, groups = _completed(given, (1, 0, 1, 1))
            beyond = 0
        stride, dilation = _each(stride, axes), _each(dilation, axes)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if not transposed:
            return cls(kernel, stride, (1,) * axes, _padding(padding, reach), dilation, groups, False)
        cut = zip(reach, _each(padding, axes), _each(beyond, axes), strict=True)
        pads = tuple((extent - pad, extent - pad + more) for extent, pad, more in cut)
        return cls(kernel, (1,) * axes, stride, pads, dilation, groups, True)

    def plain(self, weight: Tensor) -> Tensor:
        """Turn a weight into that of a convolution which is not transposed: (outputs, inputs of a group, ...)."""
        if not self.transposed:
            return weight
        parts = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return parts.flip(*range(3, parts.dim())).flatten(0, 1)

    def own(self, weight: Tensor) -> Tensor:
        """Invert `plain`."""
        return self.plain(weight)


def by_output(node: fx.Node, weight: Tensor, factors: Tensor) -> Tensor:
    """Shape one factor per output channel (O,) so that it multiplies the weight of an operation."""
    ones = [1] * (weight.dim() - 2)
    if node.target in CONVOLUTIONS and (layer := Convolution.of(node)).transposed:
        each = len(weight) // layer.groups
        return factors.reshape(layer.groups, 1, -1).expand(-1, each, -1).reshape(len(weight), -1, *ones)
    return factors.reshape(-1, 1, *ones)


def _padding(padding: Any, reach: list[int]) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        sums = [extent if padding == "same" else 0 for extent in reach]
        return tuple((total // 2, total - total // 2) for total in sums)
    return tuple((pad, pad) for pad in _each(padding, len(reach)))


def _completed(given: list[Any], usual: tuple[Any, ...]) -> list[Any]:
    return [*given, *usual[len(given) :]]


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * axes if len(values) == 1 else values
