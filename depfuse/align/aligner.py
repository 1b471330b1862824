"""Cost and solver to one coupling per group and parent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from depfuse.align.costs import activation_cost, mixed_cost, weight_cost
from depfuse.align.coupling import Coupling, Couplings, apply_couplings
from depfuse.align.matching import coordinate_descent
from depfuse.align.moments import Moments, collect_moments
from depfuse.align.transport import emd, sinkhorn
from depfuse.data.loader import Loader
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.groups import ChannelGroup, ChannelGroups, Slot
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
    """The matching problem between the reference and one other parent."""

    def __init__(
        self,
        groups: ChannelGroups,
        target: State,
        source: State,
        weights: set[str],
        moments: Mapping[str, Sequence[Moments]],
        recipe: Recipe,
    ) -> None:
        self.groups = groups.free
        self.target, self.source = target, source
        self.recipe = recipe
        self.slots = {group.name: tuple(slot for slot in group.slots if slot.key in weights) for group in self.groups}
        self.moments = moments
        if recipe.criterion == "mixture":
            distance = DISTANCES_TRIED[0] if recipe.distance == "best" else recipe.distance
            self.mixed = {name: activation_cost(taps, distance) for name, taps in moments.items()}
        untapped = [group.name for group in self.groups if group.name not in moments]
        if recipe.criterion != "weights" and untapped:
            warnings.warn(
                f"no module carries the channels of {', '.join(untapped[:3])}"
                f"{' and others' if len(untapped) > 3 else ''}: matched by weights instead",
                DepfuseWarning,
                stacklevel=3,
            )

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
        """Each group by itself: activation costs do not depend on the other groups' couplings."""
        found = {name: self._solve(activation_cost(taps, distance)) for name, taps in self.moments.items()}
        for group in self.groups:
            if group.name not in found:
                state = apply_couplings(self.groups, found, self.source)
                found[group.name] = self._solve(weight_cost(group, self.target, state, self.slots[group.name]))
        return found

    def _in_order(self) -> Couplings:
        """Layer by layer in the order of the network (Singh & Jaggi 2020, section 4.1).

        Only what precedes a group is settled by then, so its cost leaves out the slots that consume it.
        """
        found: dict[str, Coupling] = {}
        state = dict(self.source)
        for group in self.groups:
            slots = [slot for slot in self.slots[group.name] if slot.role != "consumes"]
            coupling = self._solve(self._cost(group, state, slots or self.slots[group.name], None))
            found[group.name] = coupling
            for slot in group.slots:
                state[slot.key] = coupling.apply(slot, state[slot.key])
        return found

    def _swept(self) -> Couplings:
        """The solution in order, then improved by sweeps over all slots in the same order."""
        start = {name: found.permutation for name, found in self._in_order().items() if found.permutation is not None}
        return coordinate_descent(self.groups, self.source, self._full_cost, [list(range(len(self.groups)))], start)

    def _descents(self, restarts: int) -> list[Couplings]:
        """Coordinate descent from the identity, visiting the groups in random orders."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        found: list[Couplings] = []
        for _ in range(restarts):
            orders = [torch.randperm(len(self.groups), generator=generator).tolist() for _ in range(16)]
            found.append(coordinate_descent(self.groups, self.source, self._full_cost, orders))
        return found

    def distance(self, couplings: Couplings) -> float:
        """Squared distance between the target's weights and the source's under the couplings."""
        state = apply_couplings(self.groups, couplings, self.source)
        keys = {slot.key for slots in self.slots.values() for slot in slots}
        return sum(float((self.target[key].double() - state[key].double()).square().sum()) for key in sorted(keys))

    def _full_cost(self, group: ChannelGroup, state: State, permutation: Tensor) -> Tensor:
        return self._cost(group, state, self.slots[group.name], permutation)

    def _cost(self, group: ChannelGroup, state: State, slots: Sequence[Slot], permutation: Tensor | None) -> Tensor:
        """Cost between the target's channels and the source's in their present order."""
        weights = weight_cost(group, self.target, state, slots)
        if self.recipe.criterion != "mixture" or group.name not in self.moments:
            return weights
        activations = self.mixed[group.name]
        if permutation is not None:
            activations = activations[:, permutation.to(activations.device)]
        return mixed_cost(activations, weights, self.recipe.mixture)
