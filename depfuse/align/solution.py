"""Solutions of solvers and of alignments: couplings, and whether the iterations behind them converged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from depfuse.align.coupling import Couplings


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution of a matching problem.

    Attributes
    ----------
    couplings
        One for every free group.
    not_converged
        A sentence for each iteration that stopped at its limit; its best result so far is used.
    distance
        Distance between activations, where it is one of several that were tried.
    """

    couplings: Couplings
    not_converged: tuple[str, ...] = ()
    distance: str | None = None

    @classmethod
    def of(cls, couplings: Couplings, distance: str | None = None) -> Solution:
        """Make a solution of couplings that record by themselves whether they converged."""
        said = (coupling.not_converged for coupling in couplings.values())
        return cls(couplings, distinct(sentence for sentence in said if sentence is not None), distance)

    @property
    def converged(self) -> bool:
        """True if no iteration stopped at its limit."""
        return not self.not_converged


@dataclass(frozen=True, eq=False)
class Alignment:
    """Couplings of every parent towards one channel order.

    Attributes
    ----------
    couplings
        Group name -> coupling, per parent.
    not_converged
        Distinct sentences of all solutions.
    distances
        Distinct distances between activations, where several were tried and one was chosen for a parent.
    """

    couplings: list[Couplings]
    not_converged: tuple[str, ...] = ()
    distances: tuple[str, ...] = ()


def at_limit(solver: str, iterations: int, *, unless: bool) -> tuple[str, ...]:
    """Write that a solver stopped at its limit, `unless` it converged."""
    if unless:
        return ()
    return (
        f"{solver} did not converge in {iterations} iterations: its best result so far is used; "
        "more may be allowed with iterations",
    )


def distinct(sentences: Iterable[str]) -> tuple[str, ...]:
    """Drop repeated sentences and keep the order."""
    return tuple(dict.fromkeys(sentences))
