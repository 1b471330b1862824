"""Entropic optimal transport per group: soft couplings."""

from __future__ import annotations

from functools import partial

import torch

from depfuse.align.costs import weight_cost
from depfuse.align.coupling import Coupling, Couplings, from_flat_positions
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.interface import Implementation, Transport
from depfuse.align.transport import sinkhorn
from depfuse.align.trees import unmoved_placement
from depfuse.progress import work
from depfuse.recipe.solvers import Sinkhorn, Solver


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match once per distance for activations; for weights, layer by layer."""
    return softly(problem, transports(problem.solver)[0])


def softly(problem: MatchingProblem, soft: Transport) -> list[Solution]:
    """Match by a transport that gives soft couplings."""
    settings = problem.settings
    if settings.criterion.name == "activations":
        return [Solution.of(problem.by_activations(distance, soft), distance) for distance in settings.distances]
    return [Solution.of(_in_order(problem, soft))]


def _in_order(problem: MatchingProblem, soft: Transport) -> Couplings:
    """Match layer by layer in the order of the network (Singh & Jaggi 2020, section 4.1).

    Only preceding groups are matched by then, so a group's cost leaves out the slots that consume it. Blocks that
    hold groups, and the groups inside them, get permutations.
    """
    couplings: dict[str, Coupling] = {}
    state = dict(problem.source)
    for root in work().within(problem.roots, "matching channels"):
        if root.children:
            step = problem.match_tree(root, state, unmoved_placement(root), consumed=False)[0]
            couplings |= from_flat_positions(root, step)
            state = root.permute(state, step)
            continue
        parts = problem.parts(root)
        before = [part for part in parts if part.role != "consumes"] or parts
        cost = torch.zeros(root.size, root.size, dtype=torch.float64)
        if before:
            cost = problem.mixed(root.name, weight_cost(before, problem.target, state)[0])
        couplings[root.name] = coupling = soft(cost)
        for slot in root.groups[0].slots:
            state[slot.key] = coupling.apply(slot, state[slot.key])
    return couplings


def transports(settings: Solver) -> list[Transport]:
    """Return entropic transport, for groups of any sizes."""
    assert isinstance(settings, Sinkhorn)
    return [partial(sinkhorn, regularisation=settings.regularisation)]


SOLVER = Implementation(solve, transports=transports)
