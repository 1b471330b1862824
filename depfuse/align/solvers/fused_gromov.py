"""Fused Gromov-Wasserstein matching: match channels by their costs and by their relations to other channels (POT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from depfuse.align.costs import NOISE, activation_cost, activation_noise, standardised, weight_cost
from depfuse.align.coupling import Coupling, apply_couplings
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution, at_limit
from depfuse.align.solvers.interface import Implementation
from depfuse.align.solvers.rounding import completed
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.sums import Moments
from depfuse.align.tie_breaking import break_ties
from depfuse.align.transport import assigned, checked, emd
from depfuse.groups.nesting import Part
from depfuse.networks.isolation import without_warnings
from depfuse.progress import work
from depfuse.recipe.solvers import FusedGromov

TOLERANCE = 1e-9  # relative change of the loss in the last step, below which the iteration has converged


def fused(
    cost: Tensor, target: Tensor, source: Tensor, share: float, iterations: int, start: Tensor | None = None
) -> tuple[Tensor, bool]:
    r"""Compute a permutation (n,) by fused Gromov-Wasserstein transport, and whether that converged.

    Minimises :math:`(1 - \alpha) \langle T, C \rangle + \alpha \sum_{ijkl} (D_{ik} - E_{jl})^2 T_{ij} T_{kl}` over
    plans of uniform marginals (Vayer et al. 2020, equation 4), each of the two scaled to unit deviation, from a
    permutation. A plan that is not a permutation is rounded to the nearest one.

    Parameters
    ----------
    cost
        C (n, n) between target and source channels.
    target, source
        D and E, (n, n) within each.
    share
        Alpha.
    start
        (n,) the permutation to start from; the assignment by cost alone where None.
    """
    import ot  # here, as few matchings need it, and it takes a second

    size = len(cost)
    spread = _spread(target, source)
    inside = [checked(structure / spread) for structure in (target, source)]
    uniform = np.full(size, 1.0 / size)
    with without_warnings():  # POT warns of marginals that are met up to rounding only
        plan, log = ot.gromov.fused_gromov_wasserstein(
            checked(standardised(cost)),
            *inside,
            uniform,
            uniform,
            alpha=share,
            symmetric=True,
            G0=(emd(cost) if start is None else Coupling(start)).matrix.numpy(),
            max_iter=iterations,
            log=True,
        )
    losses = log["loss"]  # before the first step, and after each
    converged = len(losses) > 1 and abs(losses[-1] - losses[-2]) <= TOLERANCE * abs(losses[-1])
    return assigned(-torch.from_numpy(np.asarray(plan))), converged or len(losses) <= iterations


def linearised(cost: Tensor, target: Tensor, source: Tensor, share: float, order: Tensor) -> Tensor:
    r"""Linearise the objective of `fused` in T about a permutation, up to terms constant along rows or columns.

    :math:`(1 - \alpha) C - 4 \alpha D T E`, with the settings and units of `fused`.
    """
    spread = _spread(target, source)
    structure = target @ source[order] / (len(cost) * spread**2)
    return (1.0 - share) * standardised(cost) - 4.0 * share * structure


def _spread(target: Tensor, source: Tensor) -> float:
    return float(torch.cat([target.reshape(-1), source.reshape(-1)]).std(correction=0)) or 1.0


def weight_similarity(parts: Sequence[Part], state: dict[str, Tensor]) -> Tensor:
    """Compute cosines (n, n) of channels' weights, which no order of the other groups changes."""
    rows = torch.cat([part.read(state[part.key])[0].float() for part in parts], 1).double()
    norms = rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    cosines: Tensor = (rows / norms) @ (rows / norms).T
    return cosines.cpu()


def activation_similarity(taps: Sequence[Moments]) -> Tensor:
    """Compute mean correlations (n, n) of a group's channels on the calibration images, over its taps."""
    return 1.0 - activation_cost(taps, "pearson") / len(taps)


def solve(problem: MatchingProblem) -> list[Solution]:
    """Match every group by itself for activations, in the order of the network for weights.

    Ties of activations are decided by weights, before and after (`break_ties`).
    """
    import ot  # noqa: F401  before the first group, whose pace would foretell the second that it takes for each

    settings, solver = problem.settings, problem.settings_of(FusedGromov)
    orders = {}
    by_activations = settings.criterion.name == "activations"
    starts = problem.by_activations(settings.distances[0], emd) if by_activations else {}
    linear_costs: dict[str, Tensor] = {}
    noise: dict[str, Tensor] = {}
    couplings_of_groups: dict[str, Coupling] = {}
    within: list[dict[str, list[Moments]]] = []
    if settings.criterion.name != "weights":
        assert problem.calibration is not None
        for network in problem.networks:
            within += collect_moments([network, network], problem.groups, problem.calibration, settings.taps)
    costs = problem.activation_costs(settings.distances[0])
    converged = True
    for root in work().within(problem.roots, "matching channels"):
        parts = problem.parts(root)
        watched = bool(within) and root.name in within[0]
        if root.children or not (watched or parts) or any(part.within is not None for part in parts):
            continue
        if watched and settings.criterion.name == "activations":
            cost = costs[root.name]
        else:
            state = apply_couplings(problem.groups, couplings_of_groups, problem.source)
            before = [part for part in parts if part.role != "consumes"] or parts
            cost = problem.mixed(root.name, weight_cost(before, problem.target, state)[0])
        structures = (
            [activation_similarity(taps[root.name]).cpu() for taps in within]
            if watched
            else [weight_similarity(parts, dict(state)) for state in (problem.target, problem.source)]
        )
        start = starts[root.name].permutation if root.name in starts else None
        order, done = fused(cost, structures[0], structures[1], solver.structure, solver.iterations, start)
        if watched and by_activations:
            linear_costs[root.name] = linearised(cost, structures[0], structures[1], solver.structure, order)
            blur = activation_noise(problem.moments[root.name], settings.distances[0]).cpu()
            doubt = 4.0 * NOISE / _spread(*structures) ** 2  # of a product of two correlations
            scale = float(cost.std(correction=0)) or 1.0
            noise[root.name] = (1.0 - solver.structure) * blur / scale + 4.0 * solver.structure * doubt
        converged = converged and done
        orders[root.name] = order
        couplings_of_groups[root.name] = Coupling(order)
    couplings = completed(problem, orders)
    if by_activations:
        trees = {name: cost for name, cost in costs.items() if name not in linear_costs}
        couplings = break_ties(problem, couplings, {**trees, **linear_costs}, noise)
    return [Solution(couplings, at_limit("fused-gromov", solver.iterations, unless=converged))]


SOLVER = Implementation(solve)
