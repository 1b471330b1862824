"""Judge of several solutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from depfuse.align.coupling import Couplings


class Judge(Protocol):
    """Loss of a child, without labels."""

    def __call__(self, parent: int, couplings: Couplings, /) -> float:
        """Judge the child of the reference and one parent, whose couplings lead to the reference's channel order."""

    def of_members(self, members: Sequence[int], couplings: Sequence[Couplings], shares: Sequence[float], /) -> float:
        """Judge the child of several parents."""
