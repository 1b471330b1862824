"""Average the children of a fusion, refit and renormalise them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from depfuse.align import Couplings
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.fusion.calibration import for_statistics
from depfuse.fusion.partial_merging import PartialMerge
from depfuse.fusion.step_acceptance import Step, StepAcceptance
from depfuse.groups import ChannelGroups
from depfuse.merge import AlignedParents, Shares, average
from depfuse.networks.forward import Example
from depfuse.recipe import Recipe
from depfuse.recipe.refits import Refit
from depfuse.refit import Session, refit_layers
from depfuse.renorm import chosen_method, renormalise, reset_batch_norm
from depfuse.teach.heads import head_weight, reweight_heads


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedChild:
    """An average after refit and renormalisation.

    Attributes
    ----------
    child
        The network.
    session
        The state from which a refitted child can be trained further.
    steps
        The child's distance from the ensemble before and after each step that was compared.
    """

    child: nn.Module
    session: Session | None = None
    steps: Sequence[Step] = ()

    @property
    def refit_left_out(self) -> bool:
        """Whether a refit was tried and discarded, since its child was no nearer to the ensemble."""
        return any(step.stage == "refit" and not step.kept for step in self.steps)

    def renorm(self, recipe: Recipe) -> str:
        """Name how the child was renormalised, where a recipe left that open."""
        if recipe.refits and not self.refit_left_out:
            after = recipe.renorm_after.name
            return "none" if after == "none" else chosen_method(after, self.child)
        resets = [step.kept for step in self.steps if step.stage == "renorm"]
        if resets:
            return "reset" if resets[0] else "none"
        return chosen_method(recipe.renorm.name, self.child)


@dataclass(frozen=True, eq=False)
class Renewal:
    """An average whose statistics are renewed, or will be.

    Attributes
    ----------
    tried
        A network of equal weights to compare others with, its statistics perhaps those of some images.
    steps
        What was decided, where something was.
    completed
        Renews the average from all images, as was decided, and returns it.
    """

    tried: nn.Module
    steps: list[Step]
    completed: Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChildBuilder:
    """Makes the children of a fusion from aligned parents.

    Attributes
    ----------
    networks
        The parents at the child's width, where needed with renewed statistics, one head, folded scales or the channels
        of other parents.
    groups, couplings
        Their channel groups, and a mapping of group name to coupling for each.
    recipe
        How averages are made and finished.
    ensemble
        The teacher, at the recipe's shares.
    calibration, example
        Images, and an input, where there are any.
    acceptance
        Compares children with the ensemble, where there are images.
    template
        A network of the child's shapes, where no parent has them.
    partial_merge
        Which channels stay unmerged, where some do.
    information
        Per parent the Fisher information of its parameters, where they are averaged by it.
    """

    networks: Sequence[nn.Module]
    groups: ChannelGroups
    couplings: Sequence[Couplings]
    recipe: Recipe
    ensemble: Ensemble
    calibration: Loader | None = None
    acceptance: StepAcceptance | None = None
    example: Example | None = None
    template: nn.Module | None = None
    partial_merge: PartialMerge | None = None
    information: Sequence[Mapping[str, Tensor]] | None = field(default=None, repr=False)

    def at(self, shares: Shares) -> ChildBuilder:
        """Give the parents other shares; a joint head is divided between them anew."""
        before, now = self.ensemble.shares, shares.network
        if tuple(before) == now or not self.ensemble.joint or self.example is None:
            return self
        teachers, networks = (
            self._reweighted(models, now, self.example) for models in (self.ensemble.networks, self.networks)
        )
        ensemble = replace(self.ensemble, networks=teachers, shares=now)
        acceptance = None if self.calibration is None else StepAcceptance(ensemble, self.calibration)
        return replace(self, networks=networks, ensemble=ensemble, acceptance=acceptance)

    def _reweighted(self, models: Sequence[nn.Module], now: Sequence[float], example: Example) -> list[nn.Module]:
        """Divide the joint head of some networks by other shares."""
        task, weights = self.ensemble.task, self.ensemble.heads
        if not weights:
            dense = task is not None and task.name == "dense"
            weights = (head_weight(models[0], example, dense=dense),)
        return reweight_heads(models, weights, self.ensemble.shares, now)

    def average(self, shares: Shares | Sequence[float]) -> nn.Module:
        """Average the parents' aligned weights."""
        owners = None if self.partial_merge is None else self.partial_merge.owners
        return average(
            self.networks,
            self.groups,
            self.couplings,
            shares,
            self.ensemble.labels,
            self.template,
            owners,
            self.information,
        )

    def finish(self, child: nn.Module, shares: Shares) -> FinishedChild:
        """Refit and renormalise an average by the recipe, where `StepAcceptance` says so; it may be changed."""
        acceptance = None if self.acceptance is None else self.acceptance.at(shares.network)
        recipe = self.recipe
        if acceptance is None or not recipe.refits:
            renewal = self._renewal(child, shares, recipe.renorm_after.name, acceptance)
            return FinishedChild(child=renewal.completed(), steps=renewal.steps)
        refitted = copy.deepcopy(child)
        images = acceptance.images
        session = self.refit(refitted, shares, images.statistics, recipe.refit, images.judging)
        self.renormalise_as_asked(refitted, self.couplings, shares)
        renewal = self._renewal(child, shares, recipe.renorm.name, acceptance)
        step = acceptance.compare("refit", recipe.refit.name, renewal.tried, refitted)
        steps = [*renewal.steps, step]
        if step.kept:
            return FinishedChild(child=refitted, session=session, steps=steps)
        return FinishedChild(child=renewal.completed(), steps=steps)

    def refit(
        self, child: nn.Module, shares: Shares, images: Loader, settings: Refit, held: Loader | None = None
    ) -> Session | None:
        """Refit an average in place, see `refit_layers`."""
        return refit_layers(
            child,
            self.parents(self.couplings, shares),
            images,
            settings,
            ensemble=self.ensemble,
            seed=self.recipe.seed,
            held=held,
        )

    def parents(self, couplings: Sequence[Couplings], shares: Shares | Sequence[float]) -> AlignedParents:
        """Combine the networks with couplings and shares."""
        return AlignedParents(self.networks, self.groups, couplings, shares, self.example)

    def renormalise(
        self,
        child: nn.Module,
        couplings: Sequence[Couplings],
        shares: Shares | Sequence[float],
        method: str,
        kept: Sequence[str] = (),
    ) -> None:
        """Renormalise an average of the parents in place, but for the layers of some names."""
        images = None if self.calibration is None else self._for_statistics(self.calibration)
        renormalise(child, method, images, self.parents(couplings, shares), kept)

    def renormalise_as_asked(
        self, child: nn.Module, couplings: Sequence[Couplings], shares: Shares | Sequence[float]
    ) -> None:
        """Renormalise by the recipe, but for layers before which nothing is merged."""
        self.renormalise(child, couplings, shares, self.recipe.renorm_after.name, self._unaffected)

    def _for_statistics(self, images: Loader) -> Loader:
        return for_statistics(images, self.recipe.calibration, self.recipe.seed)

    def _renewal(self, child: nn.Module, shares: Shares, method: str, acceptance: StepAcceptance | None) -> Renewal:
        """Renormalise an average; by `auto` only where that helps, and from all images not before it is to be used."""
        if acceptance is None or method != "auto" or chosen_method("auto", child) != "reset":
            self.renormalise(child, self.couplings, shares, method, self._unaffected)
            return Renewal(child, [], lambda: child)
        assert self.calibration is not None
        images, some = map(self._for_statistics, (self.calibration, acceptance.images.statistics))
        step, tried = acceptance.try_reset(child, some, self._unaffected)

        def completed() -> nn.Module:
            if step.kept:
                reset_batch_norm(child, images, self._unaffected)
            return child

        return Renewal(tried, [step], completed)

    @property
    def _unaffected(self) -> Sequence[str]:
        """Layers before which nothing is merged: their parents' statistics still hold."""
        return () if self.partial_merge is None else self.partial_merge.unaffected
