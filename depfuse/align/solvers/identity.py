"""No matching: every channel stays where it is, for parents that share a start (Wortsman et al. 2022, model soups)."""

from __future__ import annotations

from depfuse.align.coupling import Coupling
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.interface import Implementation


def solve(problem: MatchingProblem) -> list[Solution]:
    """Return the identity of every free group."""
    return [Solution({group.name: Coupling.identity(group.size) for group in problem.groups.free})]


SOLVER = Implementation(solve)
