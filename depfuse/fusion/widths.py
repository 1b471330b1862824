"""Match parents of unequal widths, and map them to the child's width."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from depfuse.align.coupling import Coupling, Couplings
from depfuse.align.solution import distinct
from depfuse.align.solvers import load_solver
from depfuse.align.transport import in_order
from depfuse.align.unequal_widths.copies import cluster_channels, copy_channels
from depfuse.align.unequal_widths.matching import UnequalProblem
from depfuse.align.unequal_widths.pairing import pair_groups
from depfuse.align.unequal_widths.rectangular import resize_state
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import LimitWarning, RecipeError
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.groups import ChannelGroup, ChannelGroups, find_groups, prove_groups
from depfuse.groups.nesting import find_orbits
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example
from depfuse.recipe import Recipe
from depfuse.renorm import renormalise
from depfuse.tasks.selection import whole_outputs
from depfuse.tasks.task import Task


@dataclass(frozen=True, eq=False)
class WidthMatch:
    """Parents at the child's width.

    Attributes
    ----------
    models
        One network per parent, all of the child's width: the parent itself where it has that width.
    couplings
        Per parent, group name -> coupling from its own channels; None where it has the child's width.
    reference
        Number of the parent whose channels, mapped to the child's width, the others are matched to.
    remaining
        Numbers of the parents that are still to be matched to it at the child's width: those that have it, and where
        the solver matches equal widths only, or there are blocks, all others.
    seconds
        Wall-clock seconds of choosing between several matchings.
    """

    models: list[nn.Module]
    couplings: list[Couplings | None]
    reference: int
    remaining: frozenset[int]
    seconds: float = 0.0

    @property
    def not_converged(self) -> tuple[str, ...]:
        """A sentence for each coupling whose iteration stopped at its limit, each once."""
        sentences = (c.not_converged for couplings in self.couplings for c in (couplings or {}).values())
        return distinct(sentence for sentence in sentences if sentence is not None)


class Widths:
    """The channel groups of parents and child, each at its own width, paired by name.

    Parameters
    ----------
    models
        Parents with equal tensor names.
    recipe
        Criterion, solver and their settings; `width_of` names the parent whose width the child takes.
    example
        An input to trace with.
    template
        A network of the child's width where no parent's is wanted.
    joint
        Whether the parents have a joint head.
    task
        What the outputs mean; by their shape where None.

    Attributes
    ----------
    groups
        Of the child's width, proved.
    template
        A network of the child's width.

    Raises
    ------
    RecipeError
        Groups of different widths do not correspond, or the width cannot be reached.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        recipe: Recipe,
        example: Example,
        template: nn.Module | None = None,
        *,
        joint: bool = False,
        task: Task | None = None,
    ) -> None:
        self.models, self.recipe, self.joint, self.task = models, recipe, joint, task
        self.template = models[_widest(models, recipe.merge.width_of)] if template is None else template
        self.shapes = shapes_of(self.template)
        groups_by_shapes = [(shapes_of(self.template), _proved(self.template, example, recipe))]
        self.groups = groups_by_shapes[0][1]
        self.of_parents: list[ChannelGroups] = []
        for model in models:
            parent_shapes = shapes_of(model)
            groups = next((groups for shapes, groups in groups_by_shapes if shapes == parent_shapes), None)
            if groups is None:
                groups = pair_groups(self.groups, _proved(model, example, recipe))
                groups_by_shapes.append((parent_shapes, groups))
            self.of_parents.append(groups)
        self.groups = self.groups.fix({name: why for groups in self.of_parents for name, why in groups.fixed.items()})
        for number in range(len(models)):
            if not self.fits(number):
                self._check_reached(number)
                self._check_refit(number)

    def fits(self, number: int) -> bool:
        """Tell whether a parent has the child's width."""
        return shapes_of(self.models[number]) == self.shapes

    def match(self, calibration: Loader | None) -> WidthMatch:
        """Match every parent of another width to the reference, and map it to the child's width.

        The reference is a parent of the child's width. Where there is none, it is the widest parent: similar channels
        of it are merged, or where it is too narrow, those of most effect are duplicated.

        Of several matchings the one is chosen with the least disagreement (`EnsembleJudge`) of the child of reference
        and parent at equal shares.
        """
        numbers = range(len(self.models))
        fitting = [number for number in numbers if self.fits(number)]
        reference = fitting[0] if fitting else _widest(self.models, None)
        wanted = None if self.recipe.merge.width_of is None else self.recipe.merge.width_of - 1
        if wanted in fitting:
            reference = wanted
        models = list(self.models)
        couplings: list[Couplings | None] = [None] * len(models)
        seconds = 0.0
        if not fitting:
            alone = couplings[reference] = self._alone(reference, calibration)
            models[reference] = self.network(reference, alone)
            renormalise(models[reference], self.recipe.renorm_alone.name, calibration)
        for number in numbers:
            if number != reference and number not in fitting:
                matched, spent = self._matched(models[reference], reference, number, calibration)
                couplings[number], models[number] = matched, self.network(number, matched)
                seconds += spent
        complete = load_solver(self.recipe.align.solver.name).transports is not None
        complete &= len(self._matchable()) == self.groups.count
        remaining = frozenset(number for number in numbers if number in fitting or not complete) - {reference}
        for number in remaining - set(fitting):
            renormalise(models[number], self.recipe.renorm_alone.name, calibration)
        width_match = WidthMatch(models, couplings, reference, remaining, seconds)
        for sentence in width_match.not_converged:
            warnings.warn(sentence, LimitWarning, stacklevel=2)
        return width_match

    def unmatched(self) -> list[nn.Module]:
        """Map the parents to the child's width with nothing matched: the first channels to the first."""
        return [
            model if self.fits(number) else self.network(number, self._plain(number))
            for number, model in enumerate(self.models)
        ]

    def network(self, number: int, couplings: Couplings) -> nn.Module:
        """Map a parent to the child's width by couplings."""
        state = resize_state(
            self.groups, self.of_parents[number], couplings, self.models[number].state_dict(), self.shapes
        )
        network = evaluation_copy(self.template)
        with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
            for key, tensor in network.state_dict().items():
                tensor.copy_(state[key])
        return network

    def _matched(
        self, target: nn.Module, reference: int, number: int, calibration: Loader | None
    ) -> tuple[Couplings, float]:
        transports = load_solver(self.recipe.align.solver.name).transports or load_solver("emd").transports
        assert transports is not None
        problem = UnequalProblem(
            (target, self.models[number]), (self.groups, self.of_parents[number]), self.recipe.align, calibration
        )
        candidates = problem.solve(transports(self.recipe.align.solver))
        if len(candidates) == 1 or calibration is None:
            return candidates[0], 0.0
        judge = EnsembleJudge(
            Ensemble([self.models[reference], self.models[number]], (0.5, 0.5), joint=self.joint, task=self.task),
            self.groups,
            "auto",
            CalibrationSplit.for_matchings(calibration),
        )
        losses = [judge.at_one_width((target, self.network(number, couplings)), 1) for couplings in candidates]
        return candidates[losses.index(min(losses))], judge.seconds

    def _alone(self, number: int, calibration: Loader | None) -> Couplings:
        """Couple one parent to the child's width by its own channels only."""
        model, parent_groups = self.models[number], self.of_parents[number]
        problem = UnequalProblem((model, model), (parent_groups, parent_groups), self.recipe.align, calibration)
        costs = problem.costs()
        couplings: dict[str, Coupling] = {}
        for group in self._matchable():
            joins = group.size <= parent_groups[group.name].size
            measure = costs[group.name] if joins else problem.strength(group.name)
            couplings[group.name] = (cluster_channels if joins else copy_channels)(measure, group.size)
        return couplings

    def _matchable(self) -> list[ChannelGroup]:
        roots = find_orbits(self.groups)
        return [r.groups[0] for r in roots if not r.children and all(part.within is None for part in r.parts)]

    def _plain(self, number: int) -> Couplings:
        parent_groups = self.of_parents[number]
        return {group.name: in_order(group.size, parent_groups[group.name].size) for group in self._matchable()}

    def _check_refit(self, number: int) -> None:
        """Raise `RecipeError` where a parent that a refit is to follow would lose channels first."""
        wider = any(self.of_parents[number][group.name].size > group.size for group in self.groups.free)
        if wider and self.recipe.refits:
            raise RecipeError(
                f"parent {number + 1} is wider than the child, and would be narrowed before refit "
                f"{self.recipe.refit.name}: choose refit none, or let the child be as wide as the widest parent"
            )

    def _check_reached(self, number: int) -> None:
        """Raise `RecipeError` where a tensor would not take the child's shape."""
        state = self.models[number].state_dict()
        moved = resize_state(self.groups, self.of_parents[number], self._plain(number), state, self.shapes)
        for key, shape in self.shapes.items():
            if moved[key].shape != shape:
                raise RecipeError(
                    f"parent {number + 1} cannot be brought to the child's width: {key} has shape "
                    f"{tuple(state[key].shape)}, not {tuple(shape)}, and what differs belongs to no channel group"
                )


def widest(models: Sequence[nn.Module], width_of: int | None) -> nn.Module:
    """Select the parent whose width the child has where there is no template."""
    return models[_widest(models, width_of)]


def _widest(models: Sequence[nn.Module], width_of: int | None) -> int:
    """Find the number of the parent that is asked for (counted from 1), or of the one with most parameters."""
    if width_of is not None:
        if width_of > len(models):
            raise RecipeError(f"merge.width_of {width_of} names no parent: they are numbered from 1 to {len(models)}")
        return width_of - 1
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    return counts.index(max(counts))


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Map each state-dict key to its shape."""
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def _proved(model: nn.Module, example: Example, recipe: Recipe) -> ChannelGroups:
    with whole_outputs(model):
        found = find_groups(model, example)
        return prove_groups(model, found, example, seed=recipe.seed, proof=recipe.align.proof)
