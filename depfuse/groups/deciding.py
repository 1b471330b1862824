"""Tensors that decide how many entries others have: detections kept, boxes suppressed, tokens sent to an expert.

A detection network gives as many boxes as there are scores above a threshold and boxes that do not overlap. What
permuting a tensor changes may not be seen in the few that are left, and layers that no kept box passes are not seen at
all. So what such a choice is made of counts as an output, where it is whole: if it is as before, so is every choice.
And where nothing is chosen, the first entry is, so that what follows is run in every trace and every proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from depfuse.groups.tracing.overwrites import METADATA
from depfuse.networks.leaves import tensors_in

SELECTING = frozenset({"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "nms"})
READING = frozenset({"__getitem__", "index_select", "index"})
MASKS = (torch.bool, torch.uint8)


class DecidingWatch(TorchFunctionMode):
    """Recorder, while it is active, of the floating-point tensors from which sizes of other tensors are decided.

    A mask made of such tensors that selects nothing selects its first entry.

    Attributes
    ----------
    tensors
        Those tensors, in the order of the choices.
    chosen
        Autograd functions that read a tensor at positions computed from such ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.chosen: dict[Any, None] = {}
        self._known: set[int] = set()
        self._sources: MutableMapping[Tensor, list[Tensor]] = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, and record what a choice is made of."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # what is asked here is nothing for the other modes
            sources = self._made_of(_deciding(func, args, kwargs))
        for source in sources:
            args, kwargs = tree_map(self._choosing, (args, kwargs))
            if id(source) not in self._known:
                self._known.add(id(source))
                self.tensors.append(source)
        result = func(*args, **kwargs)
        if isinstance(result, METADATA):
            return result
        with torch._C.DisableTorchFunction():
            results = [leaf for leaf in tensors_in(result) if not leaf.is_floating_point()]
            if results and (sources := self._made_of(tensors_in(args, kwargs))):
                for leaf in results:
                    self._sources[leaf] = sources
            if getattr(func, "__name__", "") in READING and result.grad_fn is not None:
                read = tensors_in(args[1:], kwargs)
                if any(leaf in self._sources for leaf in read):
                    self.chosen[result.grad_fn] = None
        return result

    def _made_of(self, operands: Iterable[Tensor]) -> list[Tensor]:
        """List the floating-point tensors among operands, and those that the others were computed from."""
        found: dict[int, Tensor] = {}
        for operand in operands:
            sources = [operand] if operand.is_floating_point() else self._sources.get(operand, [])
            found |= {id(source): source for source in sources}
        return list(found.values())

    def _choosing(self, leaf: Any) -> Any:
        """Let an empty mask that was computed select its first entry."""
        if not isinstance(leaf, Tensor) or leaf.dtype not in MASKS or leaf not in self._sources:
            return leaf
        with torch._C.DisableTorchFunction():  # what is asked here is nothing for the other modes
            if not leaf.numel() or bool(leaf.any()):
                return leaf
            chosen = leaf.clone(memory_format=torch.contiguous_format)
            chosen.view(-1)[0] = 1
        self._sources[chosen] = self._sources[leaf]
        return chosen


def _deciding(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """List the operands of a function by which the size of its result is decided; none where it is not."""
    name = getattr(func, "__name__", "")
    operands: Any = ()
    if name == "__getitem__":
        operands = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor) and leaf.dtype in MASKS]
    elif name in SELECTING or (name == "where" and len(args) + len(kwargs) == 1):
        operands = (args[1:2] or kwargs.get("mask")) if name == "masked_select" else (args, kwargs)
    return tensors_in(operands)
