"""Match the channels of the parents of a fusion, before anything is merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from depfuse.align import Coupling, Couplings, align
from depfuse.errors import GroupError
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.fusion.prepared import Prepared
from depfuse.fusion.resolve import resolve_distance
from depfuse.fusion.widths import WidthMatch, Widths
from depfuse.groups import ChannelGroups, find_groups, prove_groups
from depfuse.groups.coverage import check_followed
from depfuse.recipe import Recipe
from depfuse.renorm import has_running_statistics
from depfuse.renorm.folding import fold
from depfuse.tasks.selection import whole_outputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Aligned:
    """Parents whose channels are matched.

    Attributes
    ----------
    prepared
        The parents before, with the checked inputs.
    recipe
        The settings, with the refit and, where one was chosen, the distance resolved.
    models
        The parents at the child's width, where needed with renewed statistics, one head or folded scales.
    groups, couplings
        The channel groups, and a mapping of group name to coupling per parent.
    widths
        How the parents were mapped to the child's width, where they had others.
    unmatched
        The parents at the child's width with nothing matched, in their own order of channels.
    not_converged
        One sentence for each solver that stopped at its limit.
    folded
        Whether BatchNorm's scales were folded into the layers before.
    """

    prepared: Prepared
    recipe: Recipe
    models: Sequence[nn.Module]
    groups: ChannelGroups
    couplings: list[Couplings]
    widths: WidthMatch | None
    unmatched: Sequence[nn.Module]
    not_converged: Sequence[str]
    folded: bool

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of the steps so far."""
        return self.prepared.step.seconds

    @classmethod
    def of(cls, start: Prepared) -> Aligned:
        """Find and prove the groups of prepared parents, map them to one width, and match their channels.

        Raises
        ------
        GroupError, ArchitectureError, DataError
            See `find_groups`, `prove_groups` and `align`.
        """
        recipe, calibration, step = start.recipe, start.inputs.calibration, start.step
        models = start.ensemble.networks
        with step("groups"), whole_outputs(models[0]):
            groups, widths = _groups(start)
            check_followed(models[0], groups, recipe.align.allow_fixed, stacklevel=5)
        width_match: WidthMatch | None = None
        unmatched = models
        with step("align"):
            if widths is not None:
                width_match, unmatched = widths.match(calibration), widths.unmatched()
                models = width_match.models
            folded = recipe.align.solver.folds and has_running_statistics(models[0])
            if folded:
                reference = recipe.align.target if width_match is None else width_match.reference
                models, groups = fold(models, groups, start.input, models[reference])
            numbers = (
                list(range(len(models)))
                if width_match is None
                else [width_match.reference, *sorted(width_match.remaining)]
            )
            matched = replace(start.ensemble, networks=[models[number] for number in numbers], shares=())
            judge = None
            if calibration is not None:
                images = CalibrationSplit.for_matchings(calibration)
                judge = EnsembleJudge(matched, groups, "auto", images, start.template, recipe.align.target)
            couplings: list[Couplings] = [{g.name: Coupling.identity(g.size) for g in groups.free} for _ in models]
            shares: Sequence[float] | None = start.ensemble.shares
            if width_match is not None:
                shares = _among(start.ensemble.shares, numbers)
            alignment = align(
                matched.networks,
                groups,
                recipe.align,
                calibration,
                judge,
                start.moments,
                shares=shares,
                seed=recipe.seed,
            )
            not_converged = (() if width_match is None else width_match.not_converged) + tuple(alignment.not_converged)
            for number, coupling in zip(numbers, alignment.couplings, strict=True):
                couplings[number] = coupling
            if width_match is None:
                recipe = resolve_distance(recipe, alignment.distances)
        step.seconds["choose"] = sum(one.seconds for one in (judge, width_match) if one is not None)
        step.seconds["align"] -= step.seconds["choose"]
        return cls(
            prepared=start,
            recipe=recipe,
            models=models,
            groups=groups,
            couplings=couplings,
            widths=width_match,
            unmatched=unmatched,
            not_converged=not_converged,
            folded=folded,
        )


def _groups(start: Prepared) -> tuple[ChannelGroups, Widths | None]:
    """Find the groups unless they are given, and prove them; at several widths, pair those of all parents."""
    groups, models, recipe = start.inputs.parents.groups, start.ensemble.networks, start.recipe
    if start.unequal:
        joint, task = start.ensemble.joint, start.ensemble.task
        widths = Widths(models, recipe, start.input, start.template, joint=joint, task=task)
        return widths.groups, widths
    if groups is None:
        found = find_groups(models[0], start.input)
        return prove_groups(models[0], found, start.input, seed=recipe.seed, proof=recipe.align.proof), None
    if (wrong := groups.misfit(dict(start.copies[0].named_parameters(remove_duplicate=False)))) is not None:
        raise GroupError(f"the groups are of another network than the parents: {wrong}; find them on a parent")
    if groups.proof_error is None:
        groups = prove_groups(models[0], groups, start.input, seed=recipe.seed, proof=recipe.align.proof)
    return groups, None


def _among(shares: Sequence[float], numbers: Sequence[int]) -> tuple[float, ...] | None:
    """Normalise the shares of some parents; None, for equal ones, where they have none."""
    total = sum(shares[number] for number in numbers)
    return tuple(shares[number] / total for number in numbers) if total > 0 else None
