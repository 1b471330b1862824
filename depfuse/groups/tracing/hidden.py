"""What autograd does not record, made visible to the trace.

A part under `no_grad` or behind `detach` computes like any other, and so does an `autograd.Function` of the network's
own, whose inside is torch's operations again. Indices and masks (`topk`, `x > 0`) have no gradient: what they are made
of counts as computed, since other channels there would give other indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from depfuse.groups.tracing.overwrites import METADATA
from depfuse.networks.isolation import one_at_a_time

DETACHING = (torch.Tensor.detach, torch.detach)


class HiddenFlow(TorchFunctionMode):
    """Mode that keeps gradients where a network switches them off, and notes what its indices and masks are made of.

    Attributes
    ----------
    roots
        (Autograd function, output number) of each tensor from which indices or masks were made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roots: dict[tuple[Any, int], None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function; what detaches gives a view that is not detached."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled and args and not args[0]:
            return None
        if func in DETACHING:
            return torch.ops.aten.alias.default(args[0])
        result = func(*args, **kwargs)
        if not isinstance(result, METADATA):
            self._note(result, args, kwargs)
        return result

    def _note(self, result: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if all(leaf.is_floating_point() or leaf.is_complex() for leaf in results):
            return
        sources = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for leaf in (*sources, *results):
            if leaf.grad_fn is not None:
                self.roots[leaf.grad_fn, leaf.output_nr] = None


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
