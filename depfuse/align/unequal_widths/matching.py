"""Matching of two networks of one architecture and unequal widths, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from depfuse.align.costs import activation_cost, mixed_cost, squared_distances
from depfuse.align.coupling import Coupling, Couplings
from depfuse.align.solvers.interface import Transport
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.sums import Moments
from depfuse.align.unequal_widths.rectangular import resize_state
from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.nesting import Orbit, Part, find_orbits
from depfuse.networks.real_state import real_state
from depfuse.recipe.sections import Align

MAX_SWEEPS = 20  # over all groups; they stop where the distance no longer falls


class UnequalProblem:
    """Two networks whose groups correspond by name and differ in size.

    Groups with blocks have equal sizes in both (`pair_groups`) and stay.

    Parameters
    ----------
    networks
        The target, whose width and channel order are kept, and the source.
    groups
        Of both, paired by name.
    settings
        Criterion, distance, taps and mixture.
    calibration
        Images for the activation cost; not read for criterion `weights`.

    Raises
    ------
    RecipeError
        Activations are asked for without images.
    """

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module],
        groups: tuple[ChannelGroups, ChannelGroups],
        settings: Align,
        calibration: Loader | None,
    ) -> None:
        self.groups = groups
        self.settings = settings
        self.target, self.source = (real_state(network) for network in networks)
        self.shapes = {key: tensor.shape for key, tensor in self.target.items()}
        self.weights = {name for name, _ in networks[0].named_parameters(remove_duplicate=False)}
        source_roots = {root.name: root for root in find_orbits(groups[1])}
        self.roots: list[tuple[Orbit, Orbit]] = [
            (root, source_roots[root.name])
            for root in find_orbits(groups[0])
            if not root.children and all(part.within is None for part in root.parts)
        ]
        self._moments: Mapping[str, Sequence[Moments]] = {}
        if settings.criterion.name != "weights":
            if calibration is None:
                raise RecipeError(f"criterion {settings.criterion.name} needs calibration images: give at least 2")
            self._moments = collect_moments(networks, groups, calibration, settings.taps)[0]

    def solve(self, transports: Sequence[Transport]) -> list[Couplings]:
        """Match once per transport, and for activations per distance, the most plausible first."""
        if self.settings.criterion.name == "weights":
            return [self._by_weights(transport, {}) for transport in transports]
        tried = self.settings.distances
        if self.settings.criterion.name == "mixture":
            return [self._by_weights(transport, self._watched(tried[0])) for transport in transports]
        return [self._by_activations(transport, self._watched(d)) for transport in transports for d in tried]

    def costs(self) -> dict[str, Tensor]:
        """Compute group name -> cost (n_target, n_source) with all other groups unmoved."""
        watched = self._watched(self.settings.distances[0])
        costs = {roots[0].name: self._cost(roots, {}) for roots in self.roots}
        if self.settings.criterion.name == "mixture":
            return costs | {n: mixed_cost(cost, costs[n], self.settings.share) for n, cost in watched.items()}
        return costs | watched

    def strength(self, name: str) -> Tensor:
        """Sum the squared weights of each of the target's channels (n,), each tensor's relative to their mean."""
        root = next(target_root for target_root, _ in self.roots if target_root.name == name)
        total = torch.zeros(root.size, dtype=torch.float64)
        for part in root.parts:
            if part.key in self.weights:
                squares = part.read(self.target[part.key])[0].double().square().sum(1).cpu()
                total += squares / squares.mean().clamp_min(1e-300)
        return total

    def _watched(self, distance: str) -> dict[str, Tensor]:
        return {name: activation_cost(taps, distance).cpu() for name, taps in self._moments.items()}

    def _by_activations(self, transport: Transport, watched: Mapping[str, Tensor]) -> Couplings:
        """Match each group by itself; those that no module carries by weights, with all others in place."""
        couplings = {root.name: transport(watched[root.name]) for root, _ in self.roots if root.name in watched}
        for roots in self.roots:
            if roots[0].name not in couplings:
                couplings[roots[0].name] = transport(self._cost(roots, couplings))
        return couplings

    def _by_weights(self, transport: Transport, watched: Mapping[str, Tensor]) -> Couplings:
        """Match layer by layer in the network's order, then by sweeps over all slots; keep the nearest.

        The first sweep compares the tensors that have the target's width by then (Singh & Jaggi 2020, section 4.1).
        """
        couplings: dict[str, Coupling] = {}
        best, nearest = dict(couplings), float("inf")
        for _ in range(MAX_SWEEPS):
            for roots in self.roots:
                name = roots[0].name
                cost = self._cost(roots, {other: c for other, c in couplings.items() if other != name})
                if name in watched:
                    cost = mixed_cost(watched[name], cost, self.settings.share)
                couplings[name] = transport(cost)
            distance = self._distance(couplings)
            if distance >= nearest * (1.0 - 1e-9):
                break
            best, nearest = dict(couplings), distance
        return best

    def _cost(self, roots: tuple[Orbit, Orbit], others: Couplings) -> Tensor:
        """Compute squared distances (n_target, n_source) of channels' weights, by tensors of equal size elsewhere.

        A channel's outgoing weights are divided where it is copied, and are compared so.
        """
        unmatched = [root.name for root, _ in self.roots if root.name not in others]
        state = resize_state(*self.groups, others, self.source, self.shapes, unmatched)
        total = torch.zeros(roots[0].size, roots[1].size, dtype=torch.float64)
        ratio = roots[1].size / roots[0].size
        for own, their in self._parts(roots):
            entries = own.read(self.target[own.key])[0], their.read(state[own.key])[0]
            if entries[0].shape[1] == entries[1].shape[1]:
                scale = ratio if own.role == "consumes" else 1.0
                total += squared_distances(entries[0], scale * entries[1])
        return total

    def _parts(self, roots: tuple[Orbit, Orbit]) -> list[tuple[Part, Part]]:
        waiting: dict[tuple[str, int, str], list[Part]] = {}
        for part in roots[1].parts:
            waiting.setdefault((part.key, part.axis, part.role), []).append(part)
        pairs = [(part, waiting[part.key, part.axis, part.role].pop(0)) for part in roots[0].parts]
        return [pair for pair in pairs if pair[0].key in self.weights]

    def _distance(self, couplings: Couplings) -> float:
        state = resize_state(*self.groups, couplings, self.source, self.shapes)
        return sum(float((self.target[k].double() - state[k].double()).square().sum()) for k in sorted(self.weights))
