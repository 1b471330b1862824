"""Calls of a network: by one tensor, by several inputs, or by a function of the user's.

An output whose only entry is `logits`, as transformers' networks for classification have, is that tensor. Data classes,
mappings and other objects among outputs are made known to torch's pytrees, so that all their tensors are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import SUPPORTED_NODES, register_pytree_node, tree_leaves, tree_map

Call = Callable[[nn.Module, Any], Any]
INNER = "network."


@dataclass(frozen=True, eq=False)
class Called:
    """A batch of any kind with the function that runs a network on it: `call(model, batch)`."""

    batch: Any
    call: Call


class Selecting(Protocol):
    """What takes the tensors that count from an output that a function of the user's made."""

    def __call__(self, output: Any) -> Any:
        """Take them."""


SELECTING = "_depfuse_selecting"  # attribute of a network: what its user's `call` made is given to it


def _called(model: nn.Module, example: Called) -> Any:
    """Run a network as the user calls it; take what counts of the output, where the network says so."""
    output = example.call(model, example.batch)
    selecting: Selecting | None = getattr(model, SELECTING, None)
    return output if selecting is None else selecting(output)


register_pytree_node(
    Called,
    lambda called: ([called.batch], called.call),
    lambda children, call: Called(next(iter(children)), call),
)

Example = Tensor | Sequence[Any] | dict[str, Any] | Called


def cloned(example: Example) -> Example:
    """Copy an example's tensors, for a network that may write to its input."""
    copied: Example = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, example)
    return copied


def run_network(model: nn.Module, example: Example) -> Any:
    """Run a network on a tensor, a sequence of positional or a dict of keyword inputs, or as the user calls it.

    It is given a copy: a network may write to its input (`x *= 255`), which the next one shall see as it was.
    """
    example = cloned(example)
    if isinstance(example, Tensor):
        return _logits(model(example))
    if isinstance(example, Called):
        return _logits(_called(model, example))
    if isinstance(example, dict):
        return _logits(model(**example))
    return _logits(model(*example))


def run_with(model: nn.Module, state: Mapping[str, Tensor], example: Example, *, tied: bool = True) -> Any:
    """Run a network as `run_network` does, with other parameters and buffers, those that share a tensor `tied`."""
    example = cloned(example)
    if isinstance(example, Called):
        prefixed = {f"{INNER}{key}": tensor for key, tensor in state.items()}
        return _logits(functional_call(_Caller(model, example.call), prefixed, (example.batch,), tie_weights=tied))
    if isinstance(example, dict):
        return _logits(functional_call(model, dict(state), (), example, tie_weights=tied))
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    return _logits(functional_call(model, dict(state), inputs, tie_weights=tied))


def _logits(output: Any) -> Any:
    """Take the logits of an output that has nothing beside them; any other stays."""
    _know_classes(output)
    return output["logits"] if isinstance(output, Mapping) and list(output) == ["logits"] else output


def _know_classes(output: Any, seen: set[int] | None = None) -> None:
    """Register the classes of an output's objects that hold tensors as nodes of pytrees, those within others, too."""
    seen = set() if seen is None else seen
    for leaf in [] if isinstance(output, Tensor) else tree_leaves(output):
        kind, held = type(leaf), getattr(leaf, "__dict__", {})
        if kind in SUPPORTED_NODES or id(leaf) in seen or isinstance(leaf, (Tensor, nn.Module, type)):
            continue
        seen.add(id(leaf))
        if is_dataclass(kind):
            named = tuple(field.name for field in fields(kind))
            register_pytree_node(kind, partial(_entries_of, named), partial(_object, kind))
            _know_classes(leaf, seen)
        elif isinstance(leaf, dict):
            register_pytree_node(kind, lambda own: (list(own.values()), tuple(own)), partial(_dictionary, kind))
            _know_classes(leaf, seen)
        elif held:
            values = list(held.values())
            _know_classes(values, seen)
            if any(isinstance(value, Tensor) for value in tree_leaves(values)) and kind not in SUPPORTED_NODES:
                register_pytree_node(
                    kind, lambda own: (list(vars(own).values()), tuple(vars(own))), partial(_object, kind)
                )


def _entries_of(names: Sequence[str], own: Any) -> tuple[list[Any], Any]:
    return [getattr(own, name, None) for name in names], names


def _object(kind: type, values: Iterable[Any], names: Sequence[str]) -> Any:
    """Build an object of a class without running its code."""
    built: Any = object.__new__(kind)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(built, name, value)
    return built


def _dictionary(kind: type, values: Iterable[Any], keys: Sequence[Any]) -> Any:
    """Build a dictionary of a class of its own without running its code."""
    built: Any = dict.__new__(kind)
    dict.update(built, zip(keys, values, strict=True))
    return built


def as_module(model: nn.Module, example: Example) -> tuple[nn.Module, Any]:
    """Wrap a network into one of a single argument, a batch of any structure; return it with that of the example."""
    if isinstance(example, Called):
        return _Caller(model, example.call), example.batch
    return _Caller(model, run_network), example


class _Caller(nn.Module):
    """A network that is run on a whole batch by a function; its tensors are called `INNER` and their own name."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network, self._call = network, call

    def forward(self, batch: Any) -> Any:
        """Run the network."""
        return _called(self.network, Called(batch, self._call))


def in_layout(inputs: Any, layout: torch.memory_format) -> Any:
    """Copy images (N, C, H, W) into a memory format; other inputs stay as they are."""
    if isinstance(inputs, Tensor) and inputs.dim() == 4:
        return inputs.contiguous(memory_format=layout)
    return inputs
