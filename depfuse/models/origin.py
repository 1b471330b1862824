"""Whose words an architecture is.

The user's own words, any plain text, may be code of his: a function of a file or module, which is imported and called.
What a file says, a `FromFile`, is data. It may name a built-in network, or one of torchvision's or timm's registries
with plain values, and nothing of it is imported. For the smallest example, `build_network("nets.py:net")` runs nets.py,
and `build_network(FromFile("nets.py:net"))` raises an `ArchitectureError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from depfuse.errors import ArchitectureError
from depfuse.text import readable

REGISTRIES = ("", "torchvision", "timm")
SHOWN = 120  # characters of a file's words in a sentence
_WORD = re.compile(r"[\w.+\- ]{0,100}")
_LARGEST = 1_000_000  # of a number, which may be how often something is repeated
_LONGEST = 1000  # sequence of numbers
# Parts of the names of arguments with which the registries read or fetch something, or are given another name.
_READS = frozenset({"pretrained", "weights", "checkpoint", "cache", "url", "file", "dir", "hub", "repo", "cfg"})
_READS_NOT = frozenset({"init_weights"})
_RENAMES = frozenset({"model_name", "name", "builder"})
# How much more than a file holds may be made while its network is built: shares of it, and numbers and tensors besides.
_TIMES, _NUMBERS, _TENSORS = 16, 2**22, 2000
_MOST_NUMBERS, _MOST_TENSORS = 2**32, 200_000  # where no file says how large the network is


class FromFile(str):
    """An architecture as a file names it."""

    __slots__ = ()


def shown(text: str) -> str:
    """Show what a file says: on one line, cut where it is long, without characters that a terminal would obey."""
    plain = readable(" ".join(text.split()))
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}..."


def why_not(source: str, arguments: Mapping[str, Any]) -> str | None:
    """Say why an architecture with this source and these arguments is not built where a file names it; None if it is.

    The sentence goes on after "which".
    """
    if source not in REGISTRIES:
        return "is code of somebody's own, and reading a file runs none"
    for name, value in arguments.items():
        reads = _READS & set(name.lower().split("_")) and name not in _READS_NOT
        if (reads and value) or name in _RENAMES:
            return f"may fetch or read other files ({shown(name)})"
        if not _is_plain(value):
            return f"is given no plain value ({shown(name)})"
    return None


def _is_plain(value: object, *, nested: bool = False) -> bool:
    """Whether a value is a small number, a word, or a short sequence of these."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= _LARGEST
    if isinstance(value, (list, tuple)):
        deeper = not nested or all(not isinstance(one, (list, tuple)) for one in value)
        return deeper and len(value) <= _LONGEST and all(_is_plain(one, nested=True) for one in value)
    return value is None


class Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While a network is built, stop before a tensor is made that its file cannot have.

    Parameters
    ----------
    arch
        What is built, for the sentence.
    fitting
        The tensors that are to fit into the network; None where they are not known.
    """

    def __init__(self, arch: str, fitting: Mapping[str, Tensor] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arch = arch
        self._numbers, self._tensors = _MOST_NUMBERS, _MOST_TENSORS
        if fitting is not None:
            self._numbers = _TIMES * sum(tensor.numel() for tensor in fitting.values()) + _NUMBERS
            self._tensors = _TIMES * len(fitting) + _TENSORS

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, if what it makes is not too large."""
        named = dict(kwargs or {})
        schema = func._schema
        makes = [returned.alias_info is None for returned in schema.returns]
        if any(makes):
            given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | named
            self._count(_asked(given))
        made = func(*args, **named)
        for tensor, new in zip(made if isinstance(made, (list, tuple)) else (made,), makes, strict=False):
            if new and isinstance(tensor, Tensor):
                self._numbers, self._tensors = self._numbers - tensor.numel(), self._tensors - 1
        self._count(0)
        return made

    def _count(self, asked: int) -> None:
        if asked > self._numbers or min(self._numbers, self._tensors) < 0:
            raise ArchitectureError(
                f"{shown(self._arch)} would be a network far larger than the tensors in the file that names it"
            )


def _asked(given: Mapping[str, Any]) -> int:
    """How many numbers an operation is asked to make, as far as its arguments say."""
    size = given.get("size", given.get("repeats", ()))
    if not isinstance(size, (list, tuple)) or not all(isinstance(extent, int) for extent in size):
        return 0
    repeated = given["self"].numel() if "repeats" in given and isinstance(given.get("self"), Tensor) else 1
    return repeated * math.prod(size)


def built(
    factory: Callable[..., Any], arch: str, arguments: Mapping[str, Any], fitting: Mapping[str, Tensor] | None
) -> Any:
    """Call what builds a network; where a file names it, only as long as it stays as small as the file says."""
    if not isinstance(arch, FromFile):
        return factory(**arguments)
    with Bounded(arch, fitting):
        return factory(**arguments)
