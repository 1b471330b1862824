"""Operations of plain networks, found without `torch.export`, which imports torch's compiler: that takes seconds.

A network is plain if `torch.fx` can follow it and all that it is made of is listed here: convolutions, BatchNorm,
linear layers, ReLU, pooling, sums, and what leaves the first axis of a value alone. Its graph is the one that
`torch.export` gives, to the last argument.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from depfuse.networks.copying import FORWARD_HOOKS
from depfuse.networks.forward import Example
from depfuse.networks.isolation import without_warnings
from depfuse.refit.program.functional import make_functional
from depfuse.refit.program.operations import Operations

aten = torch.ops.aten
TRIED = 2  # images that are run: one would not tell which way values lie in memory
ALIKE = 1e-4  # difference of the outputs from the network's own, relative to the largest
_CONVOLUTIONS: dict[type[nn.Module], tuple[Any, int]] = {
    nn.Conv1d: (aten.conv1d.default, 1),
    nn.Conv2d: (aten.conv2d.default, 2),
    nn.Conv3d: (aten.conv3d.default, 3),
}
_END = 2**63 - 1  # of a slice that is open


def plain_operations(network: nn.Module, images: Example) -> Operations | None:
    """Find the operations of a plain network in eval mode; None where it is not plain.

    Parameters
    ----------
    network
        It is run on a few of the images.
    images
        A batch of the size that the operations are for.
    """
    if not isinstance(images, Tensor) or len(images) < TRIED or not _may_be_plain(network, images):
        return None
    few = images[:TRIED].clone(memory_format=torch.preserve_format)
    try:
        with without_warnings(), torch.no_grad():  # others wait: `torch.fx` changes what a call of any module does
            wanted = network(few.clone(memory_format=torch.preserve_format))
            traced = fx.Tracer().trace(network)
            writer = _Writer(network, traced, len(images))
            output = writer.run(few)
    except Exception:  # whatever cannot be followed here, `torch.export` is tried on
        return None
    if not isinstance(output, fx.Node) or not _are_alike(writer.values[output], wanted):
        return None
    graph = writer.written
    graph.output((output,))
    if not make_functional(graph):
        return None
    last = next(iter(reversed(graph.nodes))).args[0][0]
    return Operations(graph, writer.keys, {}, nn.Module(), [writer.images], last)


def _may_be_plain(network: nn.Module, images: Tensor) -> bool:
    """Tell whether nothing but its layers and its code makes up a network, and each tensor has one name."""
    keys = network.state_dict().keys()
    parameters = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    buffers = [name for name, _ in network.named_buffers(remove_duplicate=False)]
    tensors = [*network.parameters(), *network.buffers()]
    modules = list(network.modules())
    return (
        not torch.is_autocast_enabled(images.device.type)
        and not any(vars(module)[hooks] for module in modules for hooks in FORWARD_HOOKS)
        and not any("forward" in vars(module) or module.training for module in modules)
        and keys == {*parameters, *buffers}
        and len(tensors) == len(keys)
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
    )


def _are_alike(output: Tensor, wanted: object) -> bool:
    if not isinstance(wanted, Tensor) or output.shape != wanted.shape or output.dtype != wanted.dtype:
        return False
    return bool((output - wanted).abs().max() <= ALIKE * wanted.abs().max())


class _NotPlainError(Exception):
    """Something is not listed here."""


class _Writer(fx.Interpreter):
    """Write a traced network as operations of ATen, and run them on a few images to see what they give.

    Attributes
    ----------
    written
        The graph.
    keys
        State-dict keys by name of the node that stands for the tensor.
    images
        The node that stands for the images.
    values
        What each node gives for the few images.
    """

    def __init__(self, network: nn.Module, traced: fx.Graph, count: int) -> None:
        super().__init__(network, graph=traced)
        self._count = count
        self.written = fx.Graph()
        self.keys: dict[str, str] = {}
        self.values: dict[fx.Node, Tensor] = {}
        self._tensors: dict[str, fx.Node] = {}
        for letter, named in (("p", network.named_parameters()), ("b", network.named_buffers())):
            for key, tensor in named:
                node = self.written.placeholder(f"{letter}_{key.replace('.', '_')}")
                self._tensors[key], self.keys[node.name] = node, key
                self._enter(node, tensor, tensor.shape)

    def _enter(self, node: fx.Node, value: Tensor, shape: Sequence[int]) -> fx.Node:
        self.values[node] = value
        node.meta["val"] = torch.empty_strided(tuple(shape), value.stride(), dtype=value.dtype, device="meta")
        return node

    def write(self, target: Any, *args: Any) -> fx.Node:
        """Write an operation; arguments at the end that are the usual ones are left out, as `torch.export` does."""
        given = list(args)
        for argument in reversed(target._schema.arguments[: len(given)]):
            if not argument.has_default_value() or not _is_usual(given[-1], argument.default_value):
                break
            given.pop()
        if not isinstance(given[0], (fx.Node, list)):
            raise _NotPlainError
        node = self.written.call_function(target, tuple(given))
        value = target(*fx.node.map_arg(node.args, self.values.__getitem__))
        if len(value) != TRIED or value.dim() == 0:
            raise _NotPlainError
        return self._enter(node, value, (self._count, *value.shape[1:]))

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        """Bind the images, which are all that a network is given."""
        if hasattr(self, "images"):
            raise _NotPlainError
        images: Tensor = super().placeholder(target, args, kwargs)
        self.images = self.written.placeholder(target)
        return self._enter(self.images, images, (self._count, *images.shape[1:]))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        """Write a layer."""
        layer = self.fetch_attr(target)
        prefix = f"{target}."
        tensors = {key.removeprefix(prefix): node for key, node in self._tensors.items() if key.startswith(prefix)}
        if type(layer) not in _LAYERS or kwargs or len(args) != 1:
            raise _NotPlainError
        return cast(fx.Node, _LAYERS[type(layer)](self, layer, tensors, args[0]))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        """Write a function."""
        return cast(fx.Node, _FUNCTIONS[target](self, *args, **kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        """Write a method of a value."""
        return cast(fx.Node, _METHODS[target](self, *args, **kwargs))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Refuse tensors that are no layer's."""
        raise _NotPlainError


def _is_usual(given: Any, usual: Any) -> bool:
    return given == usual and not isinstance(given, fx.Node)


def _each(value: Any, axes: int) -> list[int]:
    """Return an extent per axis."""
    found = [value] * axes if isinstance(value, int) else list(value)
    if not all(type(one) is int for one in found):
        raise _NotPlainError
    return found


def _convolution(writer: _Writer, layer: Any, tensors: Mapping[str, fx.Node], x: fx.Node) -> fx.Node:
    target, axes = _CONVOLUTIONS[type(layer)]
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise _NotPlainError
    stride, padding, dilation = (_each(one, axes) for one in (layer.stride, layer.padding, layer.dilation))
    return writer.write(target, x, tensors["weight"], tensors.get("bias"), stride, padding, dilation, layer.groups)


def _batch_norm(writer: _Writer, layer: Any, tensors: Mapping[str, fx.Node], x: fx.Node) -> fx.Node:
    layer._check_input_dim(writer.values[x])
    statistics = tensors["running_mean"], tensors["running_var"]
    momentum = 0.0 if layer.momentum is None else layer.momentum
    affine = tensors.get("weight"), tensors.get("bias")
    return writer.write(aten.batch_norm.default, x, *affine, *statistics, False, momentum, layer.eps, True)


def _linear(writer: _Writer, _: Any, tensors: Mapping[str, fx.Node], x: fx.Node) -> fx.Node:
    return writer.write(aten.linear.default, x, tensors["weight"], tensors.get("bias"))


def _relu(writer: _Writer, x: fx.Node, inplace: bool = False) -> fx.Node:
    return writer.write(aten.relu_.default if inplace else aten.relu.default, x)


def _relu6(writer: _Writer, layer: Any, _: Any, x: fx.Node) -> fx.Node:
    return writer.write(aten.hardtanh_.default if layer.inplace else aten.hardtanh.default, x, 0.0, 6.0)


def _max_pool(writer: _Writer, layer: Any, _: Any, x: fx.Node) -> fx.Node:
    if layer.return_indices:
        raise _NotPlainError
    sizes = [_each(one, 2) for one in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    return writer.write(aten.max_pool2d.default, x, *sizes, layer.ceil_mode)


def _avg_pool(writer: _Writer, layer: Any, _: Any, x: fx.Node) -> fx.Node:
    sizes = [_each(one, 2) for one in (layer.kernel_size, layer.stride, layer.padding)]
    others = layer.ceil_mode, layer.count_include_pad, layer.divisor_override
    return writer.write(aten.avg_pool2d.default, x, *sizes, *others)


def _adaptive_avg_pool(writer: _Writer, x: fx.Node, output_size: Any) -> fx.Node:
    return writer.write(aten.adaptive_avg_pool2d.default, x, _each(output_size, 2))


def _flatten(writer: _Writer, x: fx.Node, start_dim: int = 0, end_dim: int = -1) -> fx.Node:
    if start_dim < 1:
        raise _NotPlainError
    return writer.write(aten.flatten.using_ints, x, start_dim, end_dim)


def _mean(writer: _Writer, x: fx.Node, dim: Any, keepdim: bool = False) -> fx.Node:
    axes = _each(dim, 1)
    if any(axis % writer.values[x].dim() == 0 for axis in axes):
        raise _NotPlainError
    return writer.write(aten.mean.dim, x, axes, keepdim)


def _sum(target: Any) -> Callable[..., fx.Node]:
    def write(writer: _Writer, x: Any, y: Any) -> fx.Node:
        if not all(isinstance(one, fx.Node) and writer.values[one].shape == writer.values[x].shape for one in (x, y)):
            raise _NotPlainError
        return writer.write(target, x, y)

    return write


def _cat(writer: _Writer, tensors: Sequence[fx.Node], dim: int = 0) -> fx.Node:
    if dim < 1:
        raise _NotPlainError
    return writer.write(aten.cat.default, list(tensors), dim)


def _part(writer: _Writer, x: fx.Node, place: Any) -> fx.Node:
    """Write `x[:, :, ::2]` as one slice per axis that is not taken as it is; the first has to be."""
    for axis, part in enumerate(place if isinstance(place, tuple) else (place,)):
        if not isinstance(part, slice) or (axis == 0 and part != slice(None)):
            raise _NotPlainError
        if part != slice(None):
            start, stop = part.start or 0, _END if part.stop is None else part.stop
            x = writer.write(aten.slice.Tensor, x, axis, start, stop, part.step or 1)
    return x


def _pad(writer: _Writer, x: fx.Node, pad: Sequence[int], mode: str = "constant", value: Any = None) -> fx.Node:
    if mode != "constant" or value is not None or len(pad) >= 2 * writer.values[x].dim():
        raise _NotPlainError
    return writer.write(aten.pad.default, x, list(pad))


_LAYERS: dict[type[nn.Module], Callable[..., Any]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.Identity, nn.Dropout), lambda _, _layer, _tensors, x: x),
    nn.Linear: _linear,
    nn.ReLU: lambda writer, layer, _, x: _relu(writer, x, layer.inplace),
    nn.ReLU6: _relu6,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: lambda writer, layer, _, x: _adaptive_avg_pool(writer, x, layer.output_size),
    nn.Flatten: lambda writer, layer, _, x: _flatten(writer, x, layer.start_dim, layer.end_dim),
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.relu, torch.relu), _relu),
    F.relu_: lambda writer, x: _relu(writer, x, True),
    operator.add: _sum(aten.add.Tensor),
    operator.iadd: _sum(aten.add_.Tensor),
    operator.getitem: _part,
    torch.flatten: _flatten,
    torch.cat: _cat,
    torch.mean: _mean,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    F.pad: _pad,
}
_METHODS: dict[str, Callable[..., Any]] = {
    "relu": _relu,
    "relu_": lambda writer, x: _relu(writer, x, True),
    "flatten": _flatten,
    "mean": _mean,
}
