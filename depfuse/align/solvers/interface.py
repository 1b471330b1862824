"""Interface of solvers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from depfuse.align.coupling import Coupling, Couplings
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.data.loader import Loader
from depfuse.groups import ChannelGroups
from depfuse.recipe.sections import Align
from depfuse.recipe.solvers import Solver

Transport = Callable[[Tensor], Coupling]
SolveJointly = Callable[[Sequence[nn.Module], ChannelGroups, Align, Loader, Sequence[float]], list[Couplings]]


@dataclass(frozen=True)
class Implementation:
    """A method that turns a matching problem into couplings.

    Attributes
    ----------
    solve
        Solutions by the problem's settings, the most plausible first: one coupling for every free group in each, and
        whether the solver converged.
    transports
        For parents of unequal widths: (settings) -> ways to a group's coupling from its cost (n_target, n_source), the
        most plausible first. None where the solver matches equal widths only: such parents first get one width by exact
        transport.
    solve_jointly
        For a solver that changes all parents, the reference too: (parents, groups, settings, calibration images,
        shares) -> the couplings of each. It is asked instead of `solve`.
    """

    solve: Callable[[MatchingProblem], list[Solution]]
    transports: Callable[[Solver], list[Transport]] | None = None
    solve_jointly: SolveJointly | None = None
