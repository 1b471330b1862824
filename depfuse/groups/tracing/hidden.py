"""What autograd does not record, made visible to the trace.

A part under `no_grad`, behind `detach` or `.data` computes like any other, and so does an `autograd.Function` of the
network's own, whose inside is torch's operations again. A tensor that is written through `.data` (a convolution that
is folded from others in each forward pass) is from then on what was written; a tensor rounded to integers and computed
with is still itself. Indices and masks (`topk`, `x > 0`) have no gradient: what they are made of counts as computed,
since other channels there would give other indices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from depfuse.groups.tracing.functional_norms import has_own_statistics, normalised
from depfuse.groups.tracing.overwrites import METADATA
from depfuse.networks.isolation import one_at_a_time
from depfuse.networks.leaves import tensors_in

READS_DATA, WRITES_DATA = torch.Tensor.data.__get__, torch.Tensor.data.__set__  # type: ignore[attr-defined]
DETACHING = (torch.Tensor.detach, torch.detach, READS_DATA)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
RANKING = {"topk": 2, "kthvalue": 2} | dict.fromkeys(("sort", "argsort", "msort", "max", "min", "argmax", "argmin"), 1)
# Functions that return places along an axis, and the place of that axis among their arguments.
CASTS = frozenset({"byte", "char", "short", "int", "long", "to", "type", "type_as"})
WRITES = re.compile(r".*[^_]_|__(i\w+|setitem|set|delete)__")  # names of functions that write to an operand


class HiddenFlow(TorchFunctionMode):
    """Mode that keeps gradients where a network switches them off, and notes what its indices and masks are made of.

    Attributes
    ----------
    roots
        (Autograd function, output number) of each tensor from which indices or masks were made.
    ranked
        Those of which the places of the largest along an axis are used (experts that a token goes to), and the axis.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roots: dict[tuple[Any, int], None] = {}
        self.ranked: dict[tuple[tuple[Any, int], int], None] = {}
        self._places: MutableMapping[Tensor, tuple[tuple[Any, int], int]] = WeakTensorKeyDictionary()
        self._written: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._rounded: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function; what detaches gives a view that is not detached, and what is written is read."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled and args and not args[0]:
            return None
        if func == WRITES_DATA:
            self._write(*args)
            return None
        if self._written and getattr(func, "__name__", "") != "__set__":
            args, kwargs = _replaced((args, kwargs), self._written)
        if func in DETACHING:
            return torch.ops.aten.alias.default(args[0])
        result = normalised(func, args, kwargs) if has_own_statistics(func, args, kwargs) else func(*args, **kwargs)
        if isinstance(result, METADATA):
            return result
        with torch._C.DisableTorchFunction():  # what is asked here is nothing for the other modes
            self._note(result, args, kwargs)
            self._rank(getattr(func, "__name__", ""), result, args, kwargs)
        return self._unrounded(func, result, args, kwargs)

    def _rank(self, name: str, result: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Note which tensor places along an axis were computed from, and whether they are used."""
        if self._places:
            used = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf in self._places)
            self.ranked |= dict.fromkeys(self._places[leaf] for leaf in used)
        if name not in RANKING or not isinstance(args[0], Tensor) or args[0].grad_fn is None:
            return
        at = RANKING[name]
        axis = kwargs.get("dim", args[at] if len(args) > at else -1)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.dtype in INTEGERS and isinstance(axis, int):
                self._places[leaf] = (args[0].grad_fn, args[0].output_nr), axis % max(args[0].dim(), 1)

    def _write(self, tensor: Tensor, value: Tensor) -> None:
        """Set a tensor's data, and keep what was written for those who read it."""
        self._written.pop(tensor, None)
        if value.grad_fn is not None:
            self._written[tensor] = value
        WRITES_DATA(tensor, value.detach())

    def _unrounded(self, func: Callable[..., Any], result: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Note that a result was rounded to integers; compute with what it was where such ones are computed with."""
        if not isinstance(result, Tensor):
            return result
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunction():
            is_integer, is_floating = result.dtype in INTEGERS, result.is_floating_point()
        if is_integer:
            if name in CASTS and isinstance(args[0], Tensor) and args[0].grad_fn is not None:
                self._rounded[result] = args[0]
        elif is_floating and self._rounded and not WRITES.fullmatch(name):
            operands = tensors_in(args, kwargs)
            if any(leaf in self._rounded for leaf in operands):
                args, kwargs = _replaced((args, kwargs), self._rounded)
                try:
                    computed = func(*args, **kwargs)
                except Exception:  # whatever a function raises that takes integers alone, as indices
                    return result
                return computed if computed.shape == result.shape and computed.requires_grad else result
        return result

    def _note(self, result: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        results = tensors_in(result)
        if all(leaf.is_floating_point() or leaf.is_complex() for leaf in results):
            return
        sources = tensors_in(args, kwargs)
        for leaf in (*sources, *results):
            if leaf.grad_fn is not None:
                self.roots[leaf.grad_fn, leaf.output_nr] = None


def _replaced(values: Any, by: MutableMapping[Tensor, Tensor]) -> Any:
    """Replace tensors by others in a structure."""
    return tree_map(lambda leaf: by.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf, values)


class _Context:
    """Context of an `autograd.Function` whose forward pass is run by itself."""

    def __init__(self, given: Sequence[Any]) -> None:
        self.needs_input_grad = tuple(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in given)
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors, as for a backward pass."""
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """Do nothing: there is no forward-mode differentiation."""

    def mark_dirty(self, *tensors: Any) -> None:
        """Do nothing: autograd notices by itself what is written in place."""

    mark_non_differentiable = set_materialize_grads = mark_dirty


@contextmanager
def functions_opened() -> Iterator[None]:
    """Within the block, run the forward pass of each `autograd.Function` as operations that autograd records.

    Where it raises so, or records nothing (a kernel of its own), the function is run as it is.
    """
    original = torch.autograd.Function.__dict__["apply"]
    without_context = torch.autograd.Function.setup_context

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        context = () if cls.setup_context is not without_context else (_Context(args),)
        try:
            result = cls.forward(*context, *args, **kwargs)
        except Exception:  # whatever a function of the user's raises that expects no gradients
            result = None
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(result)):
            return result
        return original.__get__(None, cls)(*args, **kwargs)

    with one_at_a_time():
        torch.autograd.Function.apply = classmethod(apply)
        try:
            yield
        finally:
            torch.autograd.Function.apply = original


@contextmanager
def showing(flow: HiddenFlow | None) -> Iterator[None]:
    """Show `flow` what is computed within the block, and open functions there; do nothing where it is None."""
    with ExitStack() as stack:
        if flow is not None:
            stack.enter_context(functions_opened())
            stack.enter_context(flow)
        yield
