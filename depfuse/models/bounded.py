"""Limits on networks that a file names: no larger than the file's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from depfuse.errors import ArchitectureError
from depfuse.models.origin import FromFile, shown
from depfuse.networks.dispatch import Watching

# A network's factory may make _TIMES as many numbers and tensors as the file holds, plus _NUMBERS and _TENSORS.
_TIMES, _NUMBERS, _TENSORS = 16, 2**22, 2000
_OPERATIONS = 20  # for each tensor that may be made: initialisers take up to ten
_MOST_NUMBERS, _MOST_TENSORS = 2**32, 200_000  # where no file says how large the network is


def build_bounded(
    factory: Callable[..., Any], arch: str, arguments: Mapping[str, Any], fitting: Mapping[str, Tensor] | None
) -> Any:
    """Call a network's factory; where a file names it, stop once it is larger than the file's tensors allow."""
    if not isinstance(arch, FromFile):
        return factory(**arguments)
    with Bounded(arch, fitting):
        return factory(**arguments)


class Bounded(Watching):
    """Mode that stops the building of a network before a tensor is made that its file cannot hold.

    Parameters
    ----------
    arch
        The architecture, for the error message.
    fitting
        The tensors to be loaded into the network; None where they are not known.
    """

    def __init__(self, arch: str, fitting: Mapping[str, Tensor] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arch = arch
        self._numbers, self._tensors = _MOST_NUMBERS, _MOST_TENSORS
        if fitting is not None:
            self._numbers = _TIMES * sum(tensor.numel() for tensor in fitting.values()) + _NUMBERS
            self._tensors = _TIMES * len(fitting) + _TENSORS
        self._operations = _OPERATIONS * self._tensors

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, unless its result would be too large or too many ran before it."""
        self._operations -= 1
        named = dict(kwargs or {})
        schema = func._schema
        makes = [returned.alias_info is None for returned in schema.returns]
        if any(makes):
            arguments = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | named
            self._count(_requested(arguments))
        made = func(*args, **named)
        for tensor, new in zip(made if isinstance(made, (list, tuple)) else (made,), makes, strict=False):
            if new and isinstance(tensor, Tensor):
                self._numbers, self._tensors = self._numbers - tensor.numel(), self._tensors - 1
        self._count(0)
        return made

    def _count(self, requested: int) -> None:
        if requested > self._numbers or min(self._numbers, self._tensors, self._operations) < 0:
            raise ArchitectureError(
                f"{shown(self._arch)} would be a network far larger than the tensors in the file that names it: say "
                "yourself which network it is"
            )


def _requested(arguments: Mapping[str, Any]) -> int:
    """Count the numbers that an operation will make, as far as its arguments tell."""
    size = arguments.get("size", arguments.get("repeats", ()))
    if not isinstance(size, (list, tuple)) or not all(isinstance(extent, int) for extent in size):
        return 0
    repeated = arguments["self"].numel() if "repeats" in arguments and isinstance(arguments.get("self"), Tensor) else 1
    return repeated * math.prod(size)
