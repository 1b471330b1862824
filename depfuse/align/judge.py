"""What chooses between several solutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from depfuse.align.coupling import Couplings


class Judge(Protocol):
    """How bad a child is, without labels."""

    def __call__(self, parent: int, couplings: Couplings, /) -> float:
        """Of the reference and one parent, whose couplings lead to the reference's channel order."""

    def together(self, members: Sequence[int], couplings: Sequence[Couplings], shares: Sequence[float], /) -> float:
        """Of several parents."""
