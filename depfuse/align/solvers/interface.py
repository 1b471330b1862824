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
from depfuse.recipe import Recipe

Transport = Callable[[Tensor], Coupling]
Together = Callable[[Sequence[nn.Module], ChannelGroups, Recipe, Loader], list[Couplings]]


@dataclass(frozen=True)
class Solver:
    """A method that turns a matching problem into couplings.

    Attributes
    ----------
    solve
        Solutions by the problem's recipe, the most plausible first: one coupling for every free group in each, and
        whether the solver converged.
    criteria
        The criteria that it serves.
    advice
        What to choose instead where it does not.
    needs_images
        Whether it reads calibration images whatever the criterion.
    transports
        For parents of unequal widths: (recipe) -> ways to a group's coupling from its cost (n_target, n_source), the
        most plausible first. None where the solver matches equal widths only: such parents are brought to one width by
        exact transport first.
    universe
        The criteria by which it can match each of many parents to the others' mean.
    together
        For a solver that changes all parents, the reference too: (parents, groups, recipe, calibration images) -> the
        couplings of each. It is asked instead of `solve`.
    folds
        Whether it mixes channels by maps of any sign: the scales of BatchNorm are folded into layers before (`fold`).
    """

    solve: Callable[[MatchingProblem], list[Solution]]
    criteria: tuple[str, ...]
    advice: str = ""
    needs_images: bool = False
    transports: Callable[[Recipe], list[Transport]] | None = None
    universe: tuple[str, ...] = ()
    together: Together | None = None
    folds: bool = False
