"""What solvers of all groups at once share: from soft candidates to permutations."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from depfuse.align.affinity import Affinity
from depfuse.align.coupling import Couplings
from depfuse.align.descent import Descent, SharedCosts
from depfuse.align.problem import MatchingProblem
from depfuse.align.transport import assigned


def affinity_of(problem: MatchingProblem) -> Affinity:
    """The affinities between candidates by the problem's criterion."""
    affinity = Affinity(problem.edges)
    if problem.recipe.criterion == "mixture":
        affinity.mix(problem.watched, problem.recipe.mixture)
    return affinity


def assign(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Permutation of each group by the assignment of largest weight."""
    return {name: assigned(-value) for name, value in weights.items()}


def completed(problem: MatchingProblem, found: Mapping[str, Tensor]) -> Couplings:
    """Couplings of all groups: blocks that hold groups, and groups without edges, are matched given those found."""
    placed = {name: {name: order} for name, order in found.items()}
    rest = [number for number, root in enumerate(problem.roots) if root.name not in found]
    if not rest:
        return problem.couplings(placed)
    descent = Descent(SharedCosts(problem), placed)
    descent.run([rest])
    return descent.couplings
