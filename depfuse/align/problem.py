"""The matching problem between the reference and one other parent, as the input of every solver."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from depfuse.align.costs import activation_cost, activation_noise, mixed_cost, standardised, weight_cost
from depfuse.align.coupling import Coupling, Couplings, apply_couplings, flat_positions, from_flat_positions
from depfuse.align.edges import Edges, find_edges
from depfuse.align.statistics.sums import Moments
from depfuse.align.tie_breaking import break_ties
from depfuse.align.trees import Placement, TreeCosts, match_tree, unmoved_placement, weight_tree_costs
from depfuse.data.loader import Loader
from depfuse.errors import DepfuseWarning
from depfuse.groups import ChannelGroups
from depfuse.groups.nesting import Orbit, Part, find_orbits
from depfuse.networks.real_state import real_state
from depfuse.progress import work
from depfuse.recipe.sections import Align
from depfuse.recipe.solvers import Solver

State = Mapping[str, Tensor]
S = TypeVar("S", bound=Solver)


class MatchingProblem:
    """Two networks of one architecture, with the costs of matching their channels.

    Parameters
    ----------
    groups
        Channel groups of both.
    networks
        The target, whose channel order is kept, and the source.
    settings
        Criterion, solver and how several parents are matched.
    moments
        Orbit name -> moments at each of its taps; empty for criterion `weights`.
    calibration
        The images, for solvers that run the networks.
    target
        Weights to match instead of the first network's, such as the mean of several parents.
    costs
        Activation costs by orbit name, where they are known instead of the moments.
    seed
        Of random orders.

    Attributes
    ----------
    roots
        Orbits of the free groups that lie in no block, each with the orbits inside it.
    target, source
        State dicts.
    weights
        Names of the tensors that count: running statistics are not weights, and heads of other labels do not compare.
    watched
        Orbit name -> activation cost (n, n), for criterion `mixture`.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        networks: tuple[nn.Module, nn.Module],
        settings: Align,
        moments: Mapping[str, Sequence[Moments]] | None = None,
        calibration: Loader | None = None,
        *,
        target: State | None = None,
        costs: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.groups = groups
        self.networks = networks
        self.settings = settings
        self.solver = settings.solver
        self.seed = seed
        self.moments = moments or {}
        self.costs = costs
        self.calibration = calibration
        self.roots = find_orbits(groups)
        self.target: State = real_state(networks[0]) if target is None else target
        self.source: State = real_state(networks[1])
        self.weights = {
            name
            for name, parameter in networks[1].named_parameters(remove_duplicate=False)
            if parameter.shape == self.target[name].shape
        }
        self.watched: dict[str, Tensor] = {}
        if settings.criterion.name == "mixture":
            self.watched = self.activation_costs(settings.distances[0])
        orbits = [orbit for root in self.roots for orbit in root.walk()]
        untapped = [orbit.name for orbit in orbits if orbit.name not in self.moments and not orbit.children]
        if settings.criterion.name != "weights" and costs is None:
            warn_of_untapped(untapped, stacklevel=4)

    def settings_of(self, kind: type[S]) -> S:
        """Return the settings of the solver at work, which is of this kind."""
        assert isinstance(self.solver, kind)
        return self.solver

    def by(self, solver: Solver) -> MatchingProblem:
        """Return the same problem for another solver."""
        other = copy.copy(self)
        other.solver = solver
        return other

    @cached_property
    def _edges(self) -> tuple[list[Edges], dict[str, list[Part]]]:
        return find_edges(self.roots, self.weights, self.target, self.source)

    @property
    def edges(self) -> list[Edges]:
        """Weights between the channels of groups without blocks."""
        return self._edges[0]

    @property
    def beside_edges(self) -> dict[str, list[Part]]:
        """Group name -> its parts of tensors that are not edges."""
        return self._edges[1]

    def activation_costs(self, distance: str) -> dict[str, Tensor]:
        """Compute orbit name -> cost between the channels' activations, on the CPU."""
        if self.costs is not None:
            return dict(self.costs)
        return {name: activation_cost(taps, distance).cpu() for name, taps in self.moments.items()}

    def parts(self, orbit: Orbit) -> list[Part]:
        """List the parts of weights that count and belong to an orbit's own channels."""
        return [part for part in orbit.parts if part.key in self.weights]

    def by_activations(self, distance: str, solve: Callable[[Tensor], Coupling]) -> Couplings:
        """Match each root by itself: activation costs do not depend on the other groups' couplings.

        Ties of activation costs are decided by weights (`break_ties`).
        """
        costs = self.activation_costs(distance)
        couplings: dict[str, Coupling] = {}
        for root in work().within(self.roots, "matching channels"):
            if root.children:
                couplings |= from_flat_positions(root, self.tree_by_activations(root, costs, couplings))
            elif root.name in costs:
                couplings[root.name] = solve(costs[root.name])
        for root in self.roots:
            if root.name not in couplings:
                state = apply_couplings(self.groups, couplings, self.source)
                couplings[root.name] = solve(weight_cost(self.parts(root), self.target, state)[0])
        if any(coupling.permutation is None for coupling in couplings.values()):
            return couplings
        noise = {name: activation_noise(taps, distance).cpu() for name, taps in self.moments.items()}
        return break_ties(self, couplings, costs, noise)

    def tree_by_activations(self, root: Orbit, costs: Mapping[str, Tensor], couplings: Couplings) -> Placement:
        """Match a tree by activations; channels in it that no module carries are matched by weights."""
        untapped = {orbit.name for orbit in root.walk() if orbit.name not in costs and not orbit.children}
        watched = {orbit.name: costs[orbit.name] for orbit in root.walk() if orbit.name in costs}
        state = apply_couplings(self.groups, couplings, self.source) if untapped else self.source

        def usable(name: str, part: Part) -> bool:
            return name in untapped and part.key in self.weights

        return match_tree(self._tree(root, state, usable, watched, 1.0), root)

    def couplings(self, placements: Mapping[str, Placement]) -> Couplings:
        """Make couplings of every group from the placement of every root."""
        couplings: dict[str, Coupling] = {}
        for root in self.roots:
            couplings |= from_flat_positions(root, placements[root.name])
        return couplings

    def placements(self, couplings: Couplings) -> dict[str, Placement]:
        """Return root name -> placement; roots with a soft coupling are left out."""
        placements = {}
        for root in self.roots:
            if (moved := flat_positions(root, couplings)) is not None:
                placements[root.name] = moved
        return placements

    def distance(self, couplings: Couplings) -> float:
        """Compute the squared distance between the target's weights and the source's under the couplings."""
        state = apply_couplings(self.groups, couplings, self.source)
        keys = {part.key for root in self.roots for orbit in root.walk() for part in self.parts(orbit)}
        # Heads of other labels differ in shape.
        alike = [key for key in sorted(keys) if self.target[key].shape == state[key].shape]
        return sum(_squared_distance(self.target[key], state[key]) for key in alike)

    def mixed(self, name: str, weights: Tensor) -> Tensor:
        """Mix a root's weight cost with its activation cost for criterion `mixture`."""
        return mixed_cost(self.watched[name], weights, self.settings.share) if name in self.watched else weights

    def improve_tree(self, root: Orbit, state: State, moved: Placement) -> Placement | None:
        """Find a better placement of a tree's channels; return None where there is none.

        Parameters
        ----------
        state
            The source with its current placements; only the tree's tensors are read.
        moved
            Current placement of the tree's channels.
        """
        step, before, after = self.match_tree(root, state, moved)
        return step if is_better(after, before) else None

    def match_tree(
        self, root: Orbit, state: State, moved: Placement, *, consumed: bool = True
    ) -> tuple[Placement, float, float]:
        """Find the best placement of a tree's channels, and the costs without and with it.

        With `consumed` False, the slots that consume channels are left out.
        """

        def usable(name: str, part: Part) -> bool:
            return part.key in self.weights and (consumed or part.role != "consumes")

        names = [orbit.name for orbit in root.walk() if orbit.name in self.watched]
        watched = {name: self.watched[name][:, moved[name]] for name in names}
        tree = self._tree(root, state, usable, watched, 1.0 - self.settings.share if watched else 1.0)
        step = match_tree(tree, root)
        before, after = (float(tree.of_blocks(root, place).sum()) for place in (unmoved_placement(root), step))
        return step, before, after

    def _tree(
        self,
        root: Orbit,
        state: State,
        usable: Callable[[str, Part], bool],
        watched: Mapping[str, Tensor],
        share: float,
    ) -> TreeCosts:
        """Compute the costs of a tree: weights and activations, on a common scale where there are both."""
        weights = weight_tree_costs(root, self.target, state, usable)
        if not watched:
            return weights
        spread = weights.spread(root)
        rest = 1.0 - share if self.settings.criterion.name == "mixture" else 1.0
        costs = {name: rest * standardised(cost) for name, cost in watched.items()}
        return weights.scaled(share / spread if spread > 0 else 1.0).with_costs(costs)


def _squared_distance(first: Tensor, second: Tensor) -> float:
    """Sum squared differences, in float64; their own rounding in float32 is far below what a choice turns on."""
    if not first.dtype == second.dtype == torch.float32:
        first, second = first.double(), second.double()
    difference = (first - second).reshape(-1)
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64).square())


def is_better(cost: float, than: float) -> bool:
    """Tell whether a cost is lower by more than rounding."""
    return than - cost > 1e-9 * max(abs(than), 1e-12)


def warn_of_untapped(names: Sequence[str], stacklevel: int) -> None:
    """Warn that no module carries the channels of some groups; `stacklevel` counts from here."""
    if names:
        warnings.warn(
            f"no module carries the channels of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}:"
            " matched by weights instead",
            DepfuseWarning,
            stacklevel=stacklevel,
        )
