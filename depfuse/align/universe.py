r"""Matching of many parents through one universe of channels.

Each parent has one matching to the universe, :math:`P_i`, and between two parents it is :math:`P_{ij} = P_i P_j^T`:
cycle consistent by construction (Crisostomi et al. 2024, section 4). The objective is the similarity of all pairs,
:math:`\sum_{i < j} w_i w_j \langle P_i \theta_i, P_j \theta_j \rangle`, with weights or standardised activations for
:math:`\theta` and the parents' shares for w. For one parent with all others fixed that is a matching to the
share-weighted mean of the others, so the parents are matched in turn until none moves: coordinate ascent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from depfuse.align.coupling import Coupling, Couplings, compose, invert
from depfuse.align.descent import Descent, SharedCosts
from depfuse.align.judge import Judge
from depfuse.align.placed_parents import Placed, PlacedParents
from depfuse.align.problem import MatchingProblem, is_better, warn_of_untapped
from depfuse.align.solution import Alignment, at_limit, distinct
from depfuse.align.solvers import load_solver
from depfuse.align.solvers.frank_wolfe_universe import frank_wolfe_of_universe
from depfuse.align.statistics.pairwise import MOST, PairwiseCollector, PairwiseMoments
from depfuse.align.transport import reassigned
from depfuse.align.trees import Placement, unmoved_placement
from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.nesting import Orbit, find_orbits
from depfuse.networks.real_state import real_state
from depfuse.recipe.sections import Align
from depfuse.recipe.sections import Universe as ThroughUniverse
from depfuse.recipe.solvers import FrankWolfe

DESCENTS = ("emd", "coordinate-descent")  # solvers that match by coordinate descent


def align_through_universe(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    settings: Align,
    calibration: Loader | None,
    judge: Judge | None = None,
    *,
    shares: Sequence[float] | None = None,
    seed: int = 0,
) -> Alignment:
    """Match every parent's channels, one coupling per free group, towards the order of parent `recipe.kept`.

    The order of visits does not depend on the order of the parents.

    Parameters
    ----------
    models
        Parents with equal parameter shapes, but for their outputs.
    groups
        Their common channel groups.
    settings
        Criterion, solver and their settings.
    calibration
        Images for the activation cost; not read for criterion `weights`.
    judge
        Chooses where there are several solutions; without it the first distance tried is taken.
    shares
        One per parent; equal ones where None.
    seed
        Of random orders.

    Raises
    ------
    RecipeError
        The solver does not match many parents by this criterion.
    """
    solver, criterion = settings.solver, settings.criterion.name
    if criterion not in solver.universe:
        raise RecipeError(
            f"solver {solver.name} does not match many parents by {criterion}: choose solver emd, or leave out"
            " align.through universe to match all parents to one"
        )
    universe = Universe(models, groups, settings, calibration, shares, seed)
    if criterion == "weights":
        universe.match_by_weights()
    else:
        universe.match_by_activations(judge)
    towards_universe = universe.couplings(range(len(models)))
    back = invert(groups, towards_universe[settings.kept])
    aligned: list[Couplings] = [compose(groups, couplings, back) for couplings in towards_universe]
    return Alignment(aligned, distinct(universe.not_converged), distinct(filter(None, [universe.distance])))


class Universe(PlacedParents):
    """Matching of the universe's channels to those of each parent.

    Attributes
    ----------
    visited
        The parents in the order in which they are matched.
    collector
        Collector of their activations' moments; None where only weights count.
    not_converged
        A sentence for each iteration that stopped at its limit.
    distance
        Distance between activations; empty where only weights count.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        groups: ChannelGroups,
        settings: Align,
        calibration: Loader | None,
        shares: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        assert isinstance(settings.through, ThroughUniverse)
        super().__init__(models, find_orbits(groups), shares)
        self.groups, self.settings, self.calibration = groups, settings, calibration
        self.through, self.seed = settings.through, seed
        self.not_converged: list[str] = []
        self.distance = ""
        self.visited = sorted(range(len(models)), key=lambda i: _norm(models[i]))
        self.collector: PairwiseCollector | None = None
        if settings.criterion.name != "weights":
            assert calibration is not None
            self.collector = PairwiseCollector(models, groups, calibration, settings.taps)

    def couplings(self, parents: Sequence[int]) -> list[Couplings]:
        """Return the couplings of some parents towards the universe."""
        problem = self._problem(0, {})
        return [problem.couplings(self.placed[parent]) for parent in parents]

    def _problem(
        self, parent: int, target: Mapping[str, Tensor], costs: Mapping[str, Tensor] | None = None
    ) -> MatchingProblem:
        """Pose the matching of one parent to the mean of the others."""
        model = self.models[parent]
        state = {**real_state(model), **target}
        problem = MatchingProblem(
            self.groups,
            (model, model),
            self.settings,
            None,
            self.calibration,
            target=state,
            costs=costs or {},
            seed=self.seed,
        )
        problem.weights &= set(self.keys)
        return problem

    # --- by activations -----------------------------------------------------------------------------------------

    def match_by_activations(self, judge: Judge | None) -> None:
        """Match by activations, or by activations and weights.

        The distance is chosen on the first few parents, from several starts; all others join in blocks of a few, and
        the blocks are visited again until no parent moves.
        """
        assert self.collector is not None
        distance, self.placed = self._first(judge)
        self.distance = distance
        first, *rest = self._blocks()
        for block in rest:
            pairwise = self._watch(block, distance)
            for parent in block:
                self._join(pairwise, parent, distance)
            self._ascend(pairwise, distance)
        mixture = self.settings.criterion.name == "mixture"
        untapped = self._without_taps()
        if mixture or untapped:
            warn_of_untapped([self.roots[number].name for number in untapped], stacklevel=5)
        if mixture:
            self._by_weights(range(len(self.roots)), distance)
        else:
            if rest:
                self._until_converged([first, *rest], distance)
            if untapped:
                self._by_weights(untapped)

    def _blocks(self) -> list[list[int]]:
        """Divide the parents into blocks of a few, in the order of visits."""
        return [self.visited[start : start + MOST] for start in range(0, len(self.visited), MOST)]

    def _watch(self, block: Sequence[int], distance: str) -> PairwiseMoments:
        """Collect the similarity among some parents, and to all others that are placed."""
        assert self.collector is not None
        others = {i: _by_orbit(placement) for i, placement in self.placed.items() if i not in block}
        if not others:
            return self.collector.among(block)
        return self.collector.among_and_others(block, others, self.shares, distance)

    def _first(self, judge: Judge | None) -> tuple[str, Placed]:
        """Choose the distance, and place the first few parents."""
        settings = self.settings
        block = self._blocks()[0]
        pairwise = self._watch(block, "")
        distances = settings.distances if settings.criterion.name == "activations" else settings.distances[:1]
        starts = block[: self.through.restarts if judge is not None else 1]
        candidates: list[tuple[str, Placed]] = []
        for distance in distances:
            for start in starts:
                self.placed = {start: {root.name: unmoved_placement(root) for root in self.roots}}
                self.forget_mean()
                for parent in block:
                    if parent != start:
                        self._join(pairwise, parent, distance, {start: self.placed[start]})
                self._ascend(pairwise, distance)
                candidates.append((distance, self.placed))
        if len(candidates) == 1 or judge is None:
            self.forget_mean()
            return candidates[0]
        shares = [self.shares[parent] / sum(self.shares[member] for member in block) for parent in block]
        figures = []
        for _, self.placed in candidates:
            figures.append(judge.of_members(block, self.couplings(block), shares))
        self.forget_mean()
        return candidates[min(range(len(candidates)), key=figures.__getitem__)]

    def _join(self, pairwise: PairwiseMoments, parent: int, distance: str, placed: Placed | None = None) -> None:
        """Place a parent by its similarity to those that are placed."""
        others = self.placed if placed is None else placed
        unmoved = {root.name: unmoved_placement(root) for root in self.roots}
        placements = {}
        for root in self.roots:
            if self._taps(root):
                placements[root.name] = self._step(pairwise, root, parent, distance, others, unmoved[root.name])[0]
        self._place(parent, {**unmoved, **placements})

    def _ascend(self, pairwise: PairwiseMoments, distance: str) -> bool:
        """Match some parents in turn, group by group, until none moves; tell whether any did."""
        moved = False
        for root in self.roots:
            if not self._taps(root):
                continue
            open_, left = list(pairwise.members), self.through.iterations * len(pairwise.members)
            while open_ and left:
                parent, left = open_.pop(0), left - 1
                place = self.placed[parent][root.name]
                new, better = self._step(pairwise, root, parent, distance, self.placed, place)
                if better:
                    self._place(parent, {root.name: new})
                    open_ += [other for other in pairwise.members if other != parent and other not in open_]
                    moved = True
            self.not_converged += at_limit("the universe", self.through.iterations, unless=not open_)
        return moved

    def _step(
        self, pairwise: PairwiseMoments, root: Orbit, parent: int, distance: str, placed: Placed, now: Placement
    ) -> tuple[Placement, bool]:
        """Find the best placement of one group of one parent with all others fixed, and whether it is better."""
        placements = {
            other: placement[root.name]
            for other, placement in placed.items()
            if other != parent and other in pairwise.members
        }
        names = [orbit.name for orbit in root.walk() if orbit.name in pairwise.uses]
        costs = {name: -pairwise.similarity(name, parent, placements, self.shares, distance) for name in names}
        if root.children:
            untapped = any(o.name not in costs and not o.children for o in root.walk())
            target = self.mean_of_others(parent) if untapped else {}
            placement = self._problem(parent, target, costs).tree_by_activations(root, costs, {})
        else:
            placement = {root.name: reassigned(costs[root.name], now[root.name])}
        before, after = (
            sum(float(cost.gather(1, place[name][:, None]).sum()) for name, cost in costs.items())
            for place in (now, placement)
        )
        return (placement, True) if is_better(after, before) else (now, False)

    def _until_converged(self, blocks: Sequence[Sequence[int]], distance: str) -> None:
        for _ in range(self.through.iterations):
            moved = [self._ascend(self._watch(block, distance), distance) for block in blocks]
            if not any(moved):
                return
        self.not_converged += at_limit("the universe", self.through.iterations, unless=False)

    def _taps(self, root: Orbit) -> bool:
        assert self.collector is not None
        return any(orbit.name in self.collector.tapped for orbit in root.walk() if not orbit.children)

    def _without_taps(self) -> list[int]:
        return [number for number, root in enumerate(self.roots) if not self._taps(root)]

    # --- by weights ---------------------------------------------------------------------------------------------

    def match_by_weights(self) -> None:
        """Match by weights: each parent to the mean of those before, then all in turn until none moves."""
        first, *rest = self.visited
        self.placed = {first: {root.name: unmoved_placement(root) for root in self.roots}}
        everything = list(range(len(self.roots)))
        if isinstance(self.settings.solver, FrankWolfe):
            limit = self.settings.solver.iterations
            for parent in rest:
                self.placed[parent] = {root.name: unmoved_placement(root) for root in self.roots}
            problems = {parent: self._problem(parent, {}) for parent in self.visited}
            orders, converged = frank_wolfe_of_universe(
                [problems[parent].edges for parent in self.visited],
                [self.shares[parent] for parent in self.visited],
                limit,
            )
            self.not_converged += at_limit("frank-wolfe", limit, unless=converged)
            for parent, permutations in zip(self.visited, orders, strict=True):
                self.placed[parent] |= {name: {name: order} for name, order in permutations.items()}
        else:
            for parent in rest:
                problem = self._problem(parent, self.mean_of_others(parent))
                self._place(parent, problem.placements(self._best(problem)))
        self._by_weights(everything)

    def _best(self, problem: MatchingProblem) -> Couplings:
        solutions = load_solver(self.settings.solver.name).solve(problem)
        self.not_converged += [sentence for solution in solutions for sentence in solution.not_converged]
        candidates = [solution.couplings for solution in solutions]
        return min(candidates, key=problem.distance) if self.settings.criterion.name == "weights" else candidates[0]

    def _by_weights(self, numbers: Sequence[int], distance: str | None = None) -> None:
        """Match the parents in turn, with the others fixed, until none moves.

        Parameters
        ----------
        numbers
            Numbers of the roots to be matched.
        distance
            Distance between activations that count beside the weights; None for weights alone.
        """
        blocks = self._blocks()
        pairwise = self._watch(blocks[0], distance) if distance is not None and len(blocks) == 1 else None
        for _ in range(self.through.iterations):
            moved = False
            for block in blocks:
                if distance is not None and len(blocks) > 1:
                    pairwise = self._watch(block, distance)
                for parent in block:
                    costs = None
                    if pairwise is not None and distance is not None:
                        placements = {i: _by_orbit(self.placed[i]) for i in block if i != parent}
                        costs = {
                            n: -pairwise.similarity(n, parent, placements, self.shares, distance) for n in pairwise.uses
                        }
                    moved |= self._rematch(parent, numbers, costs)
            if not moved:
                return
        self.not_converged += at_limit("the universe", self.through.iterations, unless=False)

    def _rematch(self, parent: int, numbers: Sequence[int], costs: Mapping[str, Tensor] | None) -> bool:
        """Match one parent to the mean of the others; tell whether that moved it."""
        solver, criterion = self.settings.solver.name, self.settings.criterion.name
        problem = self._problem(parent, self.mean_of_others(parent), costs)
        before = self.placed[parent]
        converged = solver == "frank-wolfe" and criterion == "weights"  # by `frank_wolfe_of_universe`
        if solver in DESCENTS or converged or len(numbers) < len(self.roots):
            descent = Descent(SharedCosts(problem), before)
            descent.run([numbers])
            placements = descent.placed
        else:
            placements = problem.placements(self._best(problem))
        now, then = problem.couplings(before), problem.couplings(placements)
        if all(torch.equal(_order(now[name]), _order(then[name])) for name in now):
            return False
        if criterion != "mixture" and not is_better(problem.distance(then), problem.distance(now)):
            return False
        self._place(parent, placements)
        return True


def _order(coupling: Coupling) -> Tensor:
    assert coupling.permutation is not None
    return coupling.permutation


def _by_orbit(placements: Mapping[str, Placement]) -> Placement:
    return {name: order for placement in placements.values() for name, order in placement.items()}


def _norm(model: nn.Module) -> float:
    return sum(float(tensor.detach().double().square().sum()) for tensor in model.parameters())
