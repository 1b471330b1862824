"""Matchings by activations whose ties are decided by weights.

Measured costs decide first. Among tied channels (silent ones, say, or two that are equal up to rounding) weights
decide, with the neighbouring groups in place; channels whose weights are equal too stay in their order. One settled
group can settle its neighbours, so the groups are visited until none moves: each step lowers the distance between the
weights, or moves channels to their own numbers at the same distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.align.ties import Tie, break_tie, find_ties
from depfuse.align.trees import Placement, compose_placements, match_tree, weight_tree_costs
from depfuse.groups.nesting import Orbit, Part

if TYPE_CHECKING:
    from depfuse.align.problem import MatchingProblem

MAX_SWEEPS = 50  # over all groups; each exchange lowers a distance, so that few are needed
DIRECT = 2**28  # entries compared up to which distances are summed entry by entry, so that equal weights have none
# For blocks and the groups inside them one cost holds all levels: activations, then weights, then the channel order.
WEIGHTS = 1e-5  # deviation of the weight cost, relative to the largest activation cost
ORDER = 1e-9  # cost of a channel that leaves its number, relative to the same: far below both


def break_ties(
    problem: MatchingProblem, couplings: Couplings, costs: Mapping[str, Tensor], noise: Mapping[str, Tensor]
) -> Couplings:
    """Choose, among couplings of equal activation cost, the nearest in weights, then the one in channel order.

    Parameters
    ----------
    couplings
        Permutations of all groups, of least activation cost.
    costs
        Orbit name -> activation cost (n, n) of that matching; a group without one is free to move.
    noise
        Orbit name -> (n, n) up to which these costs are equal.
    """
    return _TieBreaking(problem, couplings, costs, noise).run()


class _TieBreaking:
    def __init__(
        self, problem: MatchingProblem, couplings: Couplings, costs: Mapping[str, Tensor], noise: Mapping[str, Tensor]
    ) -> None:
        self.problem, self.costs = problem, costs
        self.placed = problem.placements(couplings)
        self.state = apply_couplings(problem.groups, couplings, problem.source)
        self.counted = {
            key
            for key, tensor in problem.source.items()
            if tensor.is_floating_point() and tensor.shape == problem.target[key].shape
        }
        self.scales: dict[str, float] = {}
        self.ties: dict[str, list[Tie]] = {}
        for root in problem.roots:
            if not root.children:
                self.ties[root.name] = self._ties(root, noise)

    def _ties(self, root: Orbit, noise: Mapping[str, Tensor]) -> list[Tie]:
        if root.name not in self.costs:
            everything = torch.arange(root.size)
            return [Tie(everything, torch.ones(root.size, root.size, dtype=torch.bool))]
        return list(find_ties(self.costs[root.name], self.placed[root.name][root.name], noise[root.name]))

    def run(self) -> Couplings:
        """Settle the groups in the order of the network, by what precedes each; then by all until none moves."""
        roots = [root for root in self.problem.roots if root.children or self.ties[root.name]]
        keys = [{part.key for orbit in root.walk() for part in orbit.parts} for root in roots]
        for root in roots:
            if not root.children:
                self._break_ties(root, [part for part in root.parts if part.role != "consumes"])
        open_ = set(range(len(roots)))
        for _ in range(MAX_SWEEPS):
            for number, root in enumerate(roots):
                if number not in open_:
                    continue
                open_.discard(number)
                moved = self._break_ties_of_tree(root) if root.children else self._break_ties(root, root.parts)
                if moved:
                    open_ |= {other for other, other_keys in enumerate(keys) if other_keys & keys[number]}
            if not open_:
                break
        return self.problem.couplings(self.placed)

    def _break_ties(self, root: Orbit, parts: Sequence[Part]) -> bool:
        """Decide a group's ties; tell whether that moved a channel."""
        parts = [part for part in parts if part.key in self.counted]
        moved = False
        for number, tie in enumerate(self.ties[root.name]) if parts else ():
            source = self.placed[root.name][root.name][tie.rows]
            exchange = break_tie(tie, self._distances(parts, tie.rows), tie.rows[:, None] == source[None, :])
            if exchange is not None:
                step = torch.arange(root.size)
                step[tie.rows] = tie.rows[exchange]
                self._move(root, {root.name: step})
                self.ties[root.name][number] = Tie(tie.rows, tie.allowed[:, exchange])
                moved = True
        return moved

    def _distances(self, parts: Sequence[Part], rows: Tensor) -> Tensor:
        """Compute squared distances (k, k) of some channels' entries, each tensor's relative to its mean square."""
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for part in parts:
            targets, other = (part.read(state[part.key])[0].cpu()[rows].double() for state in self._states)
            exact = targets.numel() * len(rows) <= DIRECT
            mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
            total += torch.cdist(targets, other, compute_mode=mode).square() / self._scale(part.key)
        return total

    @property
    def _states(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        return self.problem.target, self.state

    def _scale(self, key: str) -> float:
        if key not in self.scales:
            squares = [float(state[key].double().square().mean()) for state in self._states]
            self.scales[key] = sum(squares) / 2 or 1.0
        return self.scales[key]

    def _break_ties_of_tree(self, root: Orbit) -> bool:
        """Place blocks and the groups inside them again, by activations with a small share of weights."""
        weights = weight_tree_costs(root, self.problem.target, self.state, lambda _, part: part.key in self.counted)
        spread = weights.spread(root)
        place = self.placed[root.name]
        watched = {o.name: self.costs[o.name][:, place[o.name]] for o in root.walk() if o.name in self.costs}
        largest = max((float(cost.abs().max()) for cost in watched.values()), default=1.0) or 1.0
        for orbit in root.walk():
            foreign = torch.arange(len(place[orbit.name]))[:, None] != place[orbit.name][None, :]
            measured = watched.get(orbit.name, torch.zeros(foreign.shape, dtype=torch.float64))
            watched[orbit.name] = measured + ORDER * largest * foreign
        tree = weights.scaled(WEIGHTS * largest / spread if spread > 0 else 1.0).with_costs(watched)
        step = match_tree(tree, root)
        stay = {name: torch.arange(len(order)) for name, order in step.items()}
        before, after = (float(tree.of_blocks(root, at).sum()) for at in (stay, step))
        if before - after <= 0.1 * ORDER * largest:
            return False
        self._move(root, step)
        return True

    def _move(self, root: Orbit, step: Placement) -> None:
        self.placed[root.name] = compose_placements(self.placed[root.name], step)
        self.state = root.permute(self.state, step)
