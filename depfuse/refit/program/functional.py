"""Functional form of an exported network: what `run_decompositions({})` makes of it, without tracing it once more.

That second trace takes twice as long as the export. For most networks it does no more than this: it names the kernel of
a BatchNorm in eval mode, makes operations in place (`relu_`) functional, leaves out what is read by nothing or the
identity in eval mode, and writes what only changes a shape by the operations that it is made of (`view`, `clone`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

aten = torch.ops.aten

CHECKS = "_assert_tensor_metadata.default"  # of a cast's input, which autocast gives another type
_UNARY = (
    "relu_",
    "hardtanh_",
    "hardswish_",
    "hardsigmoid_",
    "silu_",
    "leaky_relu_",
    "elu_",
    "sigmoid_",
    "tanh_",
    "mish_",
)
_IN_PLACE = (*(f"{name}.default" for name in _UNARY), "add_.Tensor", "sub_.Tensor", "mul_.Tensor", "div_.Tensor")
_DROPOUTS = ("dropout.default", "dropout_.default")
# Operations that autograd is given as several others, and that are kept as they are nevertheless.
_KEPT = (
    *(f"conv{axes}d.{kind}" for axes in (1, 2, 3) for kind in ("default", "padding")),
    *("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input", "linear.default"),
    *(f"{pool}_pool{axes}d.default" for axes in (1, 2, 3) for pool in ("adaptive_avg", "avg", "max")),
    *(
        "layer_norm.default",
        "group_norm.default",
        "softmax.int",
        "log_softmax.int",
        "scaled_dot_product_attention.default",
    ),
    *("matmul.default", "einsum.default", "pad.default", "pixel_shuffle.default", "relu6.default", "selu.default"),
)
# Operations that have no such others, and that are not kept.
_RENAMED = ("alias.default", "detach.default", "lift_fresh.default", "lift_fresh_copy.default")


def functional(exported: ExportedProgram) -> ExportedProgram:
    """Make the operations of an exported network in eval mode functional, as `run_decompositions({})` does.

    Its graph is rewritten in place where all its operations are known here, and traced once more otherwise.
    """
    if make_functional(exported.graph_module.graph):
        return exported
    traced: ExportedProgram = exported.run_decompositions({})
    _without_copies(traced.graph_module.graph)
    return traced


def make_functional(graph: fx.Graph) -> bool:
    """Make the operations of a graph functional in place, where all of them are known here; tell whether they are."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    if not all(map(_is_known, nodes)):
        return False
    for node in nodes:
        if (rewrite := _REWRITES.get(name_of(node))) is not None:
            with graph.inserting_before(node):
                made = rewrite(graph, node)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return True


def _without_copies(graph: fx.Graph) -> None:
    """Write what is assigned to a part of a tensor as it is: autograd knows no derivative of `copy`."""
    for node in graph.find_nodes(op="call_function", target=aten.copy.default):
        (_, source, *_), value = node.args, node.meta["val"]
        with graph.inserting_before(node):
            if source.meta["val"].dtype != value.dtype:
                source = _call(graph, aten._to_copy.default, (source,), value, dtype=value.dtype)
            made = _call(graph, aten.expand.default, (source, list(value.shape)), value)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def name_of(node: fx.Node) -> str:
    """Name an operation of ATen, with its overload; empty for others."""
    target = node.target
    known = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
    return str(target).removeprefix("aten.") if known else ""


def _is_known(node: fx.Node) -> bool:
    """Tell whether an operation is kept or can be rewritten here."""
    name = name_of(node)
    if name in _DROPOUTS:
        return not _argument(node, "train", 2)
    if name == "batch_norm.default":
        _, _, _, mean, variance, training, *_ = node.args
        return not training and mean is not None and variance is not None
    if name in _IN_PLACE:
        return _can_be_out_of_place(node)
    if name == "contiguous.default":
        return len(node.args) == 1
    return name in _REWRITES or _is_kept(name, node.target)


def _is_kept(name: str, target: Any) -> bool:
    """Tell whether an operation is functional, and none that is written as others."""
    if target is operator.getitem or name == CHECKS or name in _KEPT:
        return True
    if not name or name in _RENAMED or target._schema.is_mutable:
        return False
    return not target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _can_be_out_of_place(node: fx.Node) -> bool:
    """Tell whether an operation in place may give a new value instead: nothing else has the old memory later."""
    source, value = node.args[0], node.meta["val"]
    operands = [operand.meta["val"] for operand in node.all_input_nodes]
    if not value.is_floating_point() or any(operand.dtype != value.dtype for operand in operands):
        return False
    assert isinstance(source, fx.Node)
    later, changed = _later(node), _changed(source)
    return not _viewed(changed) and all(
        other.op == "call_function" and (_changed(other) is changed or later.isdisjoint(other.users))
        for other in _same_memory(source) - later
    )


def _changed(node: fx.Node) -> fx.Node:
    """Find the value that a chain of operations in place began with: whoever reads any of them reads the last."""
    while name_of(node) in _IN_PLACE or name_of(node) in _DROPOUTS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _later(node: fx.Node) -> set[fx.Node]:
    """Collect the nodes after one."""
    found: set[fx.Node] = set()
    while node.op != "root":
        node = node.next
        found.add(node)
    return found


def _same_memory(node: fx.Node) -> set[fx.Node]:
    """Collect the nodes whose values may share memory with one's, itself among them."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        one = stack.pop()
        if one not in found:
            found.add(one)
            stack += [*_viewed(one), *(user for user in one.users if one in _viewed(user))]
    return found


def _viewed(node: fx.Node) -> list[fx.Node]:
    """List the inputs whose memory an operation may give."""
    if node.op != "call_function":
        return []
    if name_of(node) in _IN_PLACE:
        return node.all_input_nodes[:1]
    if name_of(node) not in ("", *_DROPOUTS) and all(one.alias_info is None for one in node.target._schema.returns):  # type: ignore[union-attr]
        return []
    return node.all_input_nodes


def _argument(node: fx.Node, name: str, place: int) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _call(graph: fx.Graph, target: Callable[..., Any], args: Any, value: Any, **kwargs: Any) -> fx.Node:
    """Insert an operation whose fake value is known."""
    made = graph.call_function(target, tuple(args), kwargs)
    made.meta["val"] = value
    return made


def _input(_: fx.Graph, node: fx.Node) -> Any:
    return node.args[0]


def _batch_norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Name the kernel of a BatchNorm in eval mode; its other two outputs are empty."""
    source, weight, bias, mean, variance, _, momentum, epsilon, *_ = node.args
    value = node.meta["val"]
    empty = value.new_empty(0)
    kernel = aten._native_batch_norm_legit_no_training.default
    norm = _call(graph, kernel, (source, weight, bias, mean, variance, momentum, epsilon), (value, empty, empty))
    return _call(graph, operator.getitem, (norm, 0), value)


def _out_of_place(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Give a new value, which all later readers of the old one take."""
    name, overload = name_of(node).split(".")
    twin = getattr(getattr(aten, name.removesuffix("_")), overload)
    made = _call(graph, twin, node.args, node.meta["val"], **node.kwargs)
    later = _later(node)
    node.args[0].replace_all_uses_with(made, delete_user_cb=later.__contains__)  # type: ignore[union-attr]
    return made


def _reshaped(graph: fx.Graph, node: fx.Node) -> Any:
    """Write a change of shape as a view, or where memory does not permit that, as one of a copy."""
    source: Any = node.args[0]
    before, after = source.meta["val"], node.meta["val"]
    if before.shape == after.shape and name_of(node) == "flatten.using_ints":
        return source
    if _is_viewable(before, after.shape):
        return _call(graph, aten.view.default, (source, list(after.shape)), after)
    copied = _call(graph, aten.clone.default, (source,), before.contiguous(), memory_format=torch.contiguous_format)
    return _call(graph, aten._unsafe_view.default, (copied, list(after.shape)), after)


def _is_viewable(tensor: Tensor, shape: torch.Size) -> bool:
    try:
        torch.empty_strided(tensor.shape, tensor.stride(), device="meta").view(shape)
    except RuntimeError:
        return False
    return True


def _contiguous(graph: fx.Graph, node: fx.Node) -> Any:
    source: Any = node.args[0]
    layout = node.kwargs.get("memory_format", torch.contiguous_format)
    if source.meta["val"].is_contiguous(memory_format=layout):
        return source
    return _call(graph, aten.clone.default, (source,), node.meta["val"], memory_format=layout)


def _split(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source: Any = node.args[0]
    parts: Any = node.args[1]
    axis = _argument(node, "dim", 2) or 0
    size = math.ceil(source.meta["val"].shape[axis] / parts)
    return _call(graph, aten.split.Tensor, (source, size, *([axis] if axis else [])), node.meta["val"])


def _transposed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _call(graph, aten.transpose.int, node.args, node.meta["val"])


def _expanded(graph: fx.Graph, node: fx.Node) -> fx.Node:
    value = node.meta["val"]
    return _call(graph, aten.expand.default, (node.args[0], list(value.shape)), value)


_REWRITES: dict[str, Callable[[fx.Graph, fx.Node], Any]] = {
    **dict.fromkeys(_DROPOUTS, _input),
    **dict.fromkeys(_IN_PLACE, _out_of_place),
    **dict.fromkeys(("flatten.using_ints", "reshape.default", "unflatten.int"), _reshaped),
    **dict.fromkeys(("swapaxes.default", "swapdims.default"), _transposed),
    "batch_norm.default": _batch_norm,
    "contiguous.default": _contiguous,
    "expand_as.default": _expanded,
    "chunk.default": _split,
}
