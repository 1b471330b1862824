"""Fused Gromov-Wasserstein matching: channels alike across the parents, and alike in whom they go with (POT)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import ot
import torch
from torch import Tensor

from depfuse.align.costs import activation_cost, standardised, weight_cost
from depfuse.align.coupling import Coupling, Couplings, apply_couplings
from depfuse.align.moments import Moments, collect_moments
from depfuse.align.problem import MatchingProblem
from depfuse.align.solvers.interface import Solver
from depfuse.align.solvers.rounding import completed, warn_of_limit
from depfuse.align.transport import assigned, checked, emd
from depfuse.groups.nesting import Part


def fused(cost: Tensor, target: Tensor, source: Tensor, share: float, iterations: int) -> tuple[Tensor, bool]:
    r"""Permutation (n,) by fused Gromov-Wasserstein transport, and whether that converged.

    Minimises :math:`(1 - \alpha) \langle T, C \rangle + \alpha \sum_{ijkl} (D_{ik} - E_{jl})^2 T_{ij} T_{kl}` over
    plans of uniform marginals (Vayer et al. 2020, equation 4), each of the two brought to spread one, from the
    assignment by cost alone. A plan that is no permutation is rounded to the nearest one.

    Parameters
    ----------
    cost
        C (n, n) between target and source channels.
    target, source
        D and E, (n, n) within each.
    share
        Alpha.
    """
    size = len(cost)
    spread = float(torch.cat([target.reshape(-1), source.reshape(-1)]).std(correction=0)) or 1.0
    inside = [checked(structure / spread) for structure in (target, source)]
    uniform = np.full(size, 1.0 / size)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan = ot.gromov.fused_gromov_wasserstein(
            checked(standardised(cost)),
            *inside,
            uniform,
            uniform,
            alpha=share,
            symmetric=True,
            G0=emd(cost).matrix.numpy(),
            max_iter=iterations,
        )
    return assigned(-torch.from_numpy(np.asarray(plan))), not any("converge" in str(w.message) for w in said)


def likeness_of_weights(parts: Sequence[Part], state: dict[str, Tensor]) -> Tensor:
    """Cosines (n, n) between the weights of a group's channels, which no order of the other groups changes."""
    rows = torch.cat([part.read(state[part.key])[0].float() for part in parts], 1).double()
    norms = rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    cosines: Tensor = (rows / norms) @ (rows / norms).T
    return cosines.cpu()


def likeness_of_activations(taps: Sequence[Moments]) -> Tensor:
    """Mean correlations (n, n) between a group's channels on the calibration images, over its taps."""
    return 1.0 - activation_cost(taps, "pearson") / len(taps)


def solve(problem: MatchingProblem) -> list[Couplings]:
    """One solution: every group by itself for activations, in the order of the network for weights."""
    recipe, orders = problem.recipe, {}
    found: dict[str, Coupling] = {}
    within: list[dict[str, list[Moments]]] = []
    if recipe.criterion != "weights":
        assert problem.calibration is not None
        for network in problem.networks:
            within += collect_moments([network, network], problem.groups, problem.calibration, recipe.taps)
    costs = problem.activation_costs(recipe.distances[0])
    converged = True
    for root in problem.roots:
        parts = problem.parts(root)
        watched = bool(within) and root.name in within[0]
        if root.children or not (watched or parts) or any(part.within is not None for part in parts):
            continue
        if watched and recipe.criterion == "activations":
            cost = costs[root.name]
        else:
            state = apply_couplings(problem.groups, found, problem.source)
            before = [part for part in parts if part.role != "consumes"] or parts
            cost = problem.mixed(root.name, weight_cost(before, problem.target, state)[0])
        structures = (
            [likeness_of_activations(taps[root.name]).cpu() for taps in within]
            if watched
            else [likeness_of_weights(parts, dict(state)) for state in (problem.target, problem.source)]
        )
        order, done = fused(cost, structures[0], structures[1], recipe.structure, recipe.iterations)
        converged = converged and done
        orders[root.name] = order
        found[root.name] = Coupling(order)
    if not converged:
        warn_of_limit("fused-gromov", recipe.iterations)
    return [completed(problem, orders)]


SOLVER = Solver(solve, criteria=("activations", "weights", "mixture"), universe=("weights",))
