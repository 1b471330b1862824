"""A fusion before anything is merged: parents whose channels are matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from depfuse.align import Coupling, Couplings, align
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import GroupError
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.fusion.prepared import Prepared
from depfuse.fusion.resolve import resolve_distance
from depfuse.fusion.widths import Brought, Widths
from depfuse.groups import ChannelGroups, find_groups, prove_groups
from depfuse.groups.coverage import check_followed
from depfuse.recipe import Recipe
from depfuse.renorm import has_batch_norm
from depfuse.renorm.folding import fold


@dataclass(frozen=True, kw_only=True, eq=False)
class Aligned:
    """Parents whose channels are matched.

    Attributes
    ----------
    prepared
        The parents before, and all that was found out about them.
    recipe
        The settings, with its refit and, where one was chosen, its distance.
    models
        What is matched: the parents at the child's width, with renewed statistics, one head or folded scales where they
        were changed so.
    groups, couplings
        The channel groups, and a mapping of group name to coupling per parent.
    widths
        How the parents were brought to the child's width, where they had others.
    unmatched
        The parents at the child's width in the order in which their channels stand.
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
    widths: Brought | None
    unmatched: Sequence[nn.Module]
    not_converged: Sequence[str]
    folded: bool

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of the steps so far."""
        return self.prepared.step.seconds

    @classmethod
    def of(cls, start: Prepared) -> Aligned:
        """Find and prove the groups of prepared parents, bring them to one width, and match their channels.

        Raises
        ------
        GroupError, ArchitectureError, DataError
            See `find_groups`, `prove_groups` and `align`.
        """
        recipe, calibration, step = start.recipe, start.inputs.calibration, start.step
        models = start.ensemble.networks
        with step("groups"):
            groups, widths = _groups(start)
            check_followed(models[0], groups, start.inputs.allow_fixed, stacklevel=5)
        brought: Brought | None = None
        unmatched = models
        with step("align"):
            if widths is not None:
                brought, unmatched = widths.bring(calibration), widths.as_they_stand()
                models = brought.models
            folded = recipe.align.solver.folds and has_batch_norm(models[0])
            if folded:
                reference = recipe.align.target if brought is None else brought.reference
                models, groups = fold(models, groups, start.input, models[reference])
            numbers = list(range(len(models))) if brought is None else [brought.reference, *sorted(brought.unsettled)]
            chosen = Ensemble([models[number] for number in numbers], (), start.ensemble.labels, start.ensemble.joint)
            judge = None
            if calibration is not None:
                images = CalibrationSplit.for_matchings(calibration)
                judge = EnsembleJudge(chosen, groups, "auto", images, start.template, recipe.align.target)
            couplings: list[Couplings] = [{g.name: Coupling.identity(g.size) for g in groups.free} for _ in models]
            shares: Sequence[float] | None = start.ensemble.shares
            if brought is not None:
                shares = _among(start.ensemble.shares, numbers)
            alignment = align(
                chosen.networks,
                groups,
                recipe.align,
                calibration,
                judge,
                start.shared,
                shares=shares,
                seed=recipe.seed,
            )
            not_converged = (() if brought is None else brought.not_converged) + tuple(alignment.not_converged)
            for number, found in zip(numbers, alignment.couplings, strict=True):
                couplings[number] = found
            if brought is None:
                recipe = resolve_distance(recipe, alignment.distances)
        step.seconds["choose"] = sum(one.seconds for one in (judge, brought) if one is not None)
        step.seconds["align"] -= step.seconds["choose"]
        return cls(
            prepared=start,
            recipe=recipe,
            models=models,
            groups=groups,
            couplings=couplings,
            widths=brought,
            unmatched=unmatched,
            not_converged=not_converged,
            folded=folded,
        )


def _groups(start: Prepared) -> tuple[ChannelGroups, Widths | None]:
    """Find or take over the groups, proved; at several widths, with what brings the parents to the child's."""
    groups, models, seed = start.inputs.groups, start.ensemble.networks, start.recipe.seed
    if start.unequal:
        widths = Widths(models, start.recipe, start.input, start.template, joint=start.ensemble.joint)
        return widths.groups, widths
    if groups is None:
        return prove_groups(models[0], find_groups(models[0], start.input), start.input, seed=seed), None
    if (wrong := groups.misfit(dict(start.copies[0].named_parameters(remove_duplicate=False)))) is not None:
        raise GroupError(f"the groups are of another network than the parents: {wrong}; find them on a parent")
    if groups.proof_error is None:
        groups = prove_groups(models[0], groups, start.input, seed=seed)
    return groups, None


def _among(shares: Sequence[float], numbers: Sequence[int]) -> tuple[float, ...] | None:
    """The shares of some parents among themselves; None, equal ones, where they have none."""
    total = sum(shares[number] for number in numbers)
    return tuple(shares[number] / total for number in numbers) if total > 0 else None
