"""Batches of a class of the user's: their tensors are stored apart, and put into such an object for the user's call."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_any

from depfuse.networks.forward import Call


class _Like:
    """An object without its tensors; equal to any other of its class that has the same tensors by name."""

    def __init__(self, pattern: Any, names: tuple[str, ...]) -> None:
        self.pattern, self.names = pattern, names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Like) and type(self.pattern) is type(other.pattern) and self.names == other.names

    def __hash__(self) -> int:
        return hash((type(self.pattern), self.names))


@dataclass(frozen=True, eq=False)
class Attributes:
    """The attributes of a batch that hold tensors, with an object to put them into.

    Attributes
    ----------
    like
        The object without them.
    values
        Tensors, or structures of tensors, in the order of their names.
    """

    like: _Like
    values: list[Any]

    @classmethod
    def of(cls, batch: Any, structure: Any) -> Attributes:
        """Take a batch apart; `structure` maps what an attribute holds to a structure of tensors."""
        found = {name: structure(value) for name, value in vars(batch).items()}
        held = {name: value for name, value in found.items() if tree_any(lambda leaf: isinstance(leaf, Tensor), value)}
        return cls(_Like(_with(batch, dict.fromkeys(held)), tuple(held)), list(held.values()))

    def restored(self) -> Any:
        """Make an object like the batch with these tensors."""
        return _with(self.like.pattern, dict(zip(self.like.names, self.values, strict=True)))


register_pytree_node(
    Attributes, lambda batch: (batch.values, batch.like), lambda values, like: Attributes(like, list(values))
)


def has_attributes(batch: Any) -> bool:
    """Tell whether a batch is an object of a class of the user's whose attributes can be taken apart."""
    return hasattr(batch, "__dict__") and not isinstance(batch, (Tensor, type, nn.Module))


@dataclass(frozen=True)
class OnObjects:
    """The user's call on batches that were taken apart."""

    call: Call

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Run a network."""
        return self.call(model, batch.restored() if isinstance(batch, Attributes) else batch)


def _with(like: Any, values: Mapping[str, Any]) -> Any:
    made = copy.copy(like)
    made.__dict__.update(values)  # also of a frozen class
    return made
