"""Cost and solver to one coupling per group and parent."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

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


def align(
    models: Sequence[nn.Module], groups: ChannelGroups, recipe: Recipe, calibration: Loader | None
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
    moments: list[dict[str, Moments]] = [{} for _ in models[1:]]
    if recipe.criterion != "weights":
        if calibration is None:
            raise RecipeError(f"criterion {recipe.criterion} needs calibration images: give at least 2")
        moments = collect_moments(models, groups, calibration, recipe.taps)
    target = models[0].state_dict()
    couplings: list[Couplings] = [{group.name: Coupling.identity(group.size) for group in groups.free}]
    for model, found in zip(models[1:], moments, strict=True):
        pair = _Pair(groups, target, model.state_dict(), _weights(model), found, recipe)
        couplings.append(pair.couplings())
    return couplings


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
        moments: Mapping[str, Moments],
        recipe: Recipe,
    ) -> None:
        self.groups = groups.free
        self.target, self.source = target, source
        self.recipe = recipe
        self.slots = {
            group.name: tuple(slot for slot in group.slots if slot.key in weights) for group in self.groups
        }
        self.activations = {name: activation_cost(found, recipe.distance) for name, found in moments.items()}
        untapped = [group.name for group in self.groups if group.name not in self.activations]
        if recipe.criterion != "weights" and untapped:
            warnings.warn(
                f"no module carries the channels of {', '.join(untapped[:3])}"
                f"{' and others' if len(untapped) > 3 else ''}: matched by weights instead",
                DepfuseWarning,
                stacklevel=3,
            )

    def couplings(self) -> Couplings:
        """Solve by the recipe's criterion and solver."""
        if self.recipe.criterion == "activations":
            return self._independent()
        if self.recipe.solver == "coordinate-descent":
            return self._descended()
        return self._swept()

    def _solve(self, cost: Tensor) -> Coupling:
        if self.recipe.solver == "sinkhorn":
            return sinkhorn(cost, self.recipe.regularisation)
        return emd(cost)

    def _independent(self) -> Couplings:
        """Each group by itself: activation costs do not depend on the other groups' couplings."""
        found: dict[str, Coupling] = {}
        for group in self.groups:
            if group.name in self.activations:
                found[group.name] = self._solve(self.activations[group.name])
        for group in self.groups:
            if group.name not in found:
                state = apply_couplings(self.groups, found, self.source)
                found[group.name] = self._solve(self._weight_cost(group, state, self.slots[group.name]))
        return found

    def _swept(self) -> Couplings:
        """Layer by layer in the order of the network, then sweeps over all slots (Singh & Jaggi 2020, section 4.1).

        The first pass knows only what precedes a group, so it uses the slots whose other side is settled; the
        sweeps that follow use all of them. Soft couplings are swept once: their sweeps need not descend.
        """
        found: dict[str, Coupling] = {}
        state = dict(self.source)
        for group in self.groups:
            slots = [slot for slot in self.slots[group.name] if slot.role != "consumes"]
            coupling = self._solve(self._cost(group, state, slots or self.slots[group.name]))
            found[group.name] = coupling
            for slot in group.slots:
                state[slot.key] = coupling.apply(slot, state[slot.key])
        if self.recipe.solver == "sinkhorn":
            return found
        start = {name: coupling.permutation for name, coupling in found.items() if coupling.permutation is not None}
        order = list(range(len(self.groups)))
        return coordinate_descent(self.groups, self.source, self._full_cost, [order], start)

    def _descended(self) -> Couplings:
        """Coordinate descent from the identity in random orders; the best of the restarts by total cost."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        best: tuple[float, Couplings] | None = None
        for _ in range(self.recipe.restarts):
            orders = [torch.randperm(len(self.groups), generator=generator).tolist() for _ in range(16)]
            found = coordinate_descent(self.groups, self.source, self._full_cost, orders)
            total = self._distance(apply_couplings(self.groups, found, self.source))
            if best is None or total < best[0]:
                best = (total, found)
        assert best is not None
        return best[1]

    def _distance(self, state: State) -> float:
        """Squared distance between the target's weights and the source's in their present order."""
        keys = {slot.key for slots in self.slots.values() for slot in slots}
        return sum(float((self.target[key].double() - state[key].double()).square().sum()) for key in sorted(keys))

    def _full_cost(self, group: ChannelGroup, state: State) -> Tensor:
        return self._cost(group, state, self.slots[group.name])

    def _cost(self, group: ChannelGroup, state: State, slots: Sequence[Slot]) -> Tensor:
        weights = self._weight_cost(group, state, slots)
        activations = self.activations.get(group.name)
        if self.recipe.criterion != "mixture" or activations is None:
            return weights
        # The activation cost is between original source channels; the descent asks for the present ones.
        return mixed_cost(activations, weights, self.recipe.mixture)

    def _weight_cost(self, group: ChannelGroup, state: State, slots: Sequence[Slot]) -> Tensor:
        return weight_cost(group, self.target, state, slots)
