"""Cost and solver to one coupling per group and parent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from depfuse.align.costs import activation_cost, mixed_cost, standardised, weight_cost
from depfuse.align.coupling import Coupling, Couplings, apply_couplings, flat_positions, from_flat_positions
from depfuse.align.matching import coordinate_descent
from depfuse.align.moments import Moments, collect_moments
from depfuse.align.nested import Placement, TreeCosts, as_it_stands, match_tree, weight_tree_costs
from depfuse.align.transport import emd, sinkhorn, transport_cost
from depfuse.data.loader import Loader
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.nesting import Orbit, Part, find_orbits
from depfuse.recipe import Recipe

State = Mapping[str, Tensor]
DISTANCES_TRIED = ("cosine", "pearson", "cosine-pearson", "scaled")


Judge = Callable[[int, Couplings], float]


def align(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    recipe: Recipe,
    calibration: Loader | None,
    judge: Judge | None = None,
) -> list[Couplings]:
    """One coupling per free group for every parent, towards the channel order of parent 0.

    Parameters
    ----------
    models
        Parents with equal parameter shapes.
    groups
        Their common channel groups.
    recipe
        Criterion, solver and their settings.
    calibration
        Images for the activation cost; not read for criterion `weights`.
    judge
        (parent number, couplings) -> how bad the child of parent 0 and that parent is, without labels. It chooses
        where there are several solutions; without it the lowest weight distance does, or the first distance tried.

    Returns
    -------
    list of mapping
        Group name -> coupling, per parent; identities for parent 0.

    Raises
    ------
    RecipeError
        Activations are asked for without images, or the solver does not serve the criterion.
    """
    if recipe.solver == "coordinate-descent" and recipe.criterion == "activations":
        raise RecipeError(
            "solver coordinate-descent matches weights: choose criterion weights or mixture, or solver emd or sinkhorn"
        )
    moments: list[dict[str, list[Moments]]] = [{} for _ in models[1:]]
    if recipe.criterion != "weights":
        if calibration is None:
            raise RecipeError(f"criterion {recipe.criterion} needs calibration images: give at least 2")
        moments = collect_moments(models, groups, calibration, recipe.taps)
    target = models[0].state_dict()
    couplings: list[Couplings] = [{group.name: Coupling.identity(group.size) for group in groups.free}]
    for number, (model, found) in enumerate(zip(models[1:], moments, strict=True), start=1):
        pair = _Pair(groups, target, model.state_dict(), _weights(model), found, recipe)
        candidates = _distinct(pair.candidates())
        if len(candidates) == 1:
            couplings.append(candidates[0])
        elif judge is not None:
            couplings.append(min(candidates, key=partial(judge, number)))
        elif recipe.criterion == "activations":
            couplings.append(candidates[0])
        else:
            couplings.append(min(candidates, key=pair.distance))
    return couplings


def _distinct(candidates: Sequence[Couplings]) -> list[Couplings]:
    """Candidates that differ, in their order."""
    found: list[Couplings] = []
    for candidate in candidates:
        if not any(all(_equal(candidate[name], known[name]) for name in known) for known in found):
            found.append(candidate)
    return found


def _equal(first: Coupling, second: Coupling) -> bool:
    if first.permutation is not None and second.permutation is not None:
        return torch.equal(first.permutation, second.permutation)
    return first.plan is second.plan


def _weights(model: nn.Module) -> set[str]:
    """Names of the parameters: running statistics are no weights."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


class _Pair:
    """The matching problem between the reference and one other parent.

    Attributes
    ----------
    roots
        Orbits of the free groups that lie in no block, each with all that is inside it.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        target: State,
        source: State,
        weights: set[str],
        moments: Mapping[str, Sequence[Moments]],
        recipe: Recipe,
    ) -> None:
        self.groups = groups
        self.roots = find_orbits(groups.groups)
        self.target, self.source = target, source
        self.recipe = recipe
        self.weights = weights
        self.moments = moments
        if recipe.criterion == "mixture":
            self.watched = self._activation_costs(DISTANCES_TRIED[0] if recipe.distance == "best" else recipe.distance)
        orbits = [orbit for root in self.roots for orbit in root.walk()]
        untapped = [orbit.name for orbit in orbits if orbit.name not in moments and not orbit.children]
        if recipe.criterion != "weights" and untapped:
            warnings.warn(
                f"no module carries the channels of {', '.join(untapped[:3])}"
                f"{' and others' if len(untapped) > 3 else ''}: matched by weights instead",
                DepfuseWarning,
                stacklevel=3,
            )

    def _activation_costs(self, distance: str) -> dict[str, Tensor]:
        return {name: activation_cost(taps, distance).cpu() for name, taps in self.moments.items()}

    def candidates(self) -> list[Couplings]:
        """Solutions by the recipe's criterion and solver, the most plausible first.

        One, or one per distance tried, or the local optima of the restarts.
        """
        if self.recipe.criterion == "activations":
            distances = DISTANCES_TRIED if self.recipe.distance == "best" else (self.recipe.distance,)
            return [self._independent(distance) for distance in distances]
        if self.recipe.solver == "sinkhorn":
            return [self._in_order()]
        if self.recipe.solver == "emd":
            return [self._swept(), *self._descents(self.recipe.restarts - 1)]
        return self._descents(self.recipe.restarts)

    def _solve(self, cost: Tensor) -> Coupling:
        if self.recipe.solver == "sinkhorn":
            return sinkhorn(cost, self.recipe.regularisation)
        return emd(cost)

    def _independent(self, distance: str) -> Couplings:
        """Each root by itself: activation costs do not depend on the other groups' couplings."""
        costs = self._activation_costs(distance)
        found: dict[str, Coupling] = {}
        for root in self.roots:
            if root.children:
                found |= from_flat_positions(root, self._by_activations(root, costs, found))
            elif root.name in costs:
                found[root.name] = self._solve(costs[root.name])
        for root in self.roots:
            if root.name not in found:
                state = apply_couplings(self.groups, found, self.source)
                found[root.name] = self._solve(weight_cost(self._parts(root), self.target, state)[0])
        return found

    def _by_activations(self, root: Orbit, costs: Mapping[str, Tensor], found: Couplings) -> Placement:
        """A tree's placement; channels in it that no module carries are matched by weights."""
        untapped = {orbit.name for orbit in root.walk() if orbit.name not in costs and not orbit.children}
        watched = {orbit.name: costs[orbit.name] for orbit in root.walk() if orbit.name in costs}
        state = apply_couplings(self.groups, found, self.source) if untapped else self.source

        def usable(name: str, part: Part) -> bool:
            return name in untapped and part.key in self.weights

        return match_tree(self._tree(root, state, usable, watched, 1.0), root)

    def _parts(self, orbit: Orbit) -> list[Part]:
        return [part for part in orbit.parts if part.key in self.weights]

    def _in_order(self) -> Couplings:
        """Layer by layer in the order of the network (Singh & Jaggi 2020, section 4.1).

        Only what precedes a group is settled by then, so its cost leaves out the slots that consume it. Blocks that
        hold groups, and what is inside them, get permutations from every solver.
        """
        found: dict[str, Coupling] = {}
        state = dict(self.source)
        for root in self.roots:
            if root.children:
                step = self._match_tree(root, state, as_it_stands(root), consumed=False)[0]
                found |= from_flat_positions(root, step)
                state = root.permute(state, step)
                continue
            parts = self._parts(root)
            before = [part for part in parts if part.role != "consumes"]
            found[root.name] = coupling = self._solve(self._cost(root, state, before or parts, None))
            for slot in root.groups[0].slots:
                state[slot.key] = coupling.apply(slot, state[slot.key])
        return found

    def _swept(self) -> Couplings:
        """The solution in order, then improved by sweeps over all slots in the same order."""
        start = {}
        couplings = self._in_order()
        for root in self.roots:
            if (moved := flat_positions(root, couplings)) is not None:
                start[root.name] = moved
        return self._couplings(coordinate_descent(self, [list(range(len(self.roots)))], start))

    def _descents(self, restarts: int) -> list[Couplings]:
        """Coordinate descent from the identity, visiting the groups in random orders."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        found: list[Couplings] = []
        for _ in range(restarts):
            orders = [torch.randperm(len(self.roots), generator=generator).tolist() for _ in range(16)]
            found.append(self._couplings(coordinate_descent(self, orders)))
        return found

    def _couplings(self, found: Mapping[str, Placement]) -> Couplings:
        couplings: dict[str, Coupling] = {}
        for root in self.roots:
            couplings |= from_flat_positions(root, found[root.name])
        return couplings

    def distance(self, couplings: Couplings) -> float:
        """Squared distance between the target's weights and the source's under the couplings."""
        state = apply_couplings(self.groups, couplings, self.source)
        keys = {part.key for root in self.roots for orbit in root.walk() for part in self._parts(orbit)}
        return sum(float((self.target[key].double() - state[key].double()).square().sum()) for key in sorted(keys))

    def improve(self, root: Orbit, state: State, moved: Placement) -> Placement | None:
        """The best placement of one root's channels from where they stand; None where they stand best."""
        if root.children:
            step, before, after = self._match_tree(root, state, moved)
        else:
            cost = self._cost(root, state, self._parts(root), moved[root.name])
            coupling = emd(cost)
            assert coupling.permutation is not None
            step = {root.name: coupling.permutation}
            before, after = (transport_cost(cost, c) for c in (Coupling.identity(root.size), coupling))
        return step if before - after > 1e-9 * max(abs(before), 1e-12) else None

    def _cost(self, root: Orbit, state: State, parts: Sequence[Part], permutation: Tensor | None) -> Tensor:
        """Cost between the target's channels and the source's in their present order."""
        if not parts:
            return torch.zeros(root.size, root.size, dtype=torch.float64)
        weights = weight_cost(parts, self.target, state)[0]
        if self.recipe.criterion != "mixture" or root.name not in self.watched:
            return weights
        activations = self.watched[root.name]
        if permutation is not None:
            activations = activations[:, permutation]
        return mixed_cost(activations, weights, self.recipe.mixture)

    def _match_tree(
        self, root: Orbit, state: State, moved: Placement, *, consumed: bool = True
    ) -> tuple[Placement, float, float]:
        """The best placement of a tree's channels, and the costs without and with it."""

        def usable(name: str, part: Part) -> bool:
            return part.key in self.weights and (consumed or part.role != "consumes")

        watched: dict[str, Tensor] = {}
        if self.recipe.criterion == "mixture":
            own = [orbit.name for orbit in root.walk() if orbit.name in self.watched]
            watched = {name: self.watched[name][:, moved[name]] for name in own}
        tree = self._tree(root, state, usable, watched, 1.0 - self.recipe.mixture if watched else 1.0)
        step = match_tree(tree, root)
        before, after = (float(tree.of_blocks(root, place).sum()) for place in (as_it_stands(root), step))
        return step, before, after

    def _tree(
        self,
        root: Orbit,
        state: State,
        usable: Callable[[str, Part], bool],
        watched: Mapping[str, Tensor],
        share: float,
    ) -> TreeCosts:
        """Costs of a tree: weights, and activations beside them, brought to a common scale where there are both."""
        weights = weight_tree_costs(root, self.target, state, usable)
        if not watched:
            return weights
        spread = weights.spread(root)
        rest = 1.0 - share if self.recipe.criterion == "mixture" else 1.0
        costs = {name: rest * standardised(cost) for name, cost in watched.items()}
        return weights.scaled(share / spread if spread > 0 else 1.0).with_costs(costs)
