"""Programs that hold for batches of any size, though they were traced with one of a certain size."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from depfuse.refit.program.functional import name_of
from depfuse.refit.program.graph import Program

LEAST = 8  # images in a batch that was traced: the sizes of a network's own axes are often smaller
EPSILON = 1e-4  # below which a number is added so that none is divided by zero
_LAYERS = (
    *(f"conv{axes}d.{kind}" for axes in (1, 2, 3) for kind in ("default", "padding")),
    *(f"{pool}_pool{axes}d.default" for axes in (1, 2, 3) for pool in ("adaptive_avg", "_adaptive_avg", "avg", "max")),
    *("convolution.default", "conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input"),
    *("linear.default", "_native_batch_norm_legit_no_training.default", "layer_norm.default", "group_norm.default"),
    *("relu.default", "hardtanh.default", "hardswish.default", "hardsigmoid.default", "silu.default", "gelu.default"),
    *("leaky_relu.default", "elu.default", "sigmoid.default", "tanh.default", "mish.default", "clone.default"),
)
_VIEWS = ("view.default", "_unsafe_view.default", "expand.default")


def free_batch_size(program: Program, size: int) -> None:
    """Make a program hold for batches of any size, if it can be told that none of its operations depends on that.

    These are layers, arithmetic of tensors, and what leaves the first axis alone; shapes that begin with the size do so
    with -1 then.

    Parameters
    ----------
    program
        Changed in place.
    size
        Of the batch that was traced.
    """
    inputs = all(_shape(node)[:1] == [size] for node in program.inputs)
    if size < LEAST or program.has_constants or not inputs:
        return
    if not all(_is_free(node, size) for node in program.nodes):
        return
    program.any_size = True
    for node in program.nodes:
        if name_of(node) in _VIEWS:
            node.update_arg(1, [-1, *_shape(node)[1:]])


def _is_free(node: fx.Node, size: int) -> bool:
    name = name_of(node)
    if node.target is operator.getitem or name in _LAYERS:
        return True
    if name in _VIEWS:
        return _shape(node)[:1] == _shape(node.args[0])[:1] == [size]
    axes = _AXES.get(name)
    return axes is not None and axes(node)


def _shape(node: Any) -> list[int]:
    return list(node.meta["val"].shape)


def _of_tensors(node: fx.Node) -> bool:
    """Tell whether an operation is of tensors, or of one and a number that is no size, nor a share of one."""
    operands = node.args[:2]
    return not node.kwargs and all(isinstance(one, fx.Node) or 0 < abs(one) < EPSILON for one in operands)  # type: ignore[arg-type, operator]


def _others(place: int, default: int | None = None) -> Callable[[fx.Node], bool]:
    """Tell whether the axes that an operation is given at a place are without the first."""

    def judged(node: fx.Node) -> bool:
        axes: Any = node.args[place] if len(node.args) > place else default
        source: Any = node.all_input_nodes[0]
        count = len(_shape(source))
        if axes is None:
            return False
        return all(axis % count != 0 for axis in (axes if isinstance(axes, (list, tuple)) else [axes]))

    return judged


def _first_stays(node: fx.Node) -> bool:
    axes: Any = node.args[1]
    return bool(axes[0] == 0)


_AXES: dict[str, Callable[[fx.Node], bool]] = {
    **dict.fromkeys(("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "clamp_min.default"), _of_tensors),
    **dict.fromkeys(("mean.dim", "softmax.int", "log_softmax.int"), _others(1)),
    "cat.default": _others(1, 0),
    "linalg_vector_norm.default": _others(2),
    "split.Tensor": _others(2, 0),
    "transpose.int": lambda node: _others(1)(node) and _others(2)(node),
    "permute.default": _first_stays,
}
