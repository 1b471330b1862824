"""What a fusion gives: the child, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from depfuse.align import Couplings
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.fusion.arrangement import Owners
from depfuse.fusion.candidates import Candidate, best_of
from depfuse.fusion.choose_shares import ChosenShares
from depfuse.fusion.keeping import Step
from depfuse.fusion.material import Material
from depfuse.fusion.partial_merging import PartialMerge
from depfuse.fusion.widths import Brought
from depfuse.groups import ChannelGroups
from depfuse.merge import Shares
from depfuse.networks.calling import Example
from depfuse.networks.isolation import isolated
from depfuse.recipe import Recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class FusionResult:
    """A child and how it came about.

    Attributes
    ----------
    child
        The fused network, in eval mode, in the channel order of parent 0, or of the one that the recipe names; of
        parent `like` where widths differ.
    parents
        The parents as they were given.
    recipe
        The settings used, with what all became that was left open: a fusion by it decides nothing anew.
    seconds
        Wall-clock seconds of `groups` (finding and proving), `align`, `choose` (between several alignments), `merge`,
        `shares` (choosing them for each part) and `refit` where they were asked for, `renorm`, and `distil` and
        `finetune` where they were.
    material
        What was averaged, and how.
    ensemble
        What the child learned from: the parents as given, or with renewed statistics, and with one head.
    chosen
        The parents' shares in the child, and how they were chosen where the recipe says so.
    parent_labels, given_template
        Which labels the outputs of the parents stand for, where they differ, and the template, as they were given.
    unmatched
        The parents at the child's width in the order in which their channels stand.
    not_converged
        One sentence for each solver that stopped at its limit; the best of its results is used.
    widths
        Where parents had other widths: how each was brought to the child's, with the rectangular couplings.
    family
        All candidates, where the recipe's goal is the best of them.
    steps
        How far the child was from its parents' ensemble before and after each step that followed the merge, and which
        were kept.
    folded
        Whether BatchNorm's scales were folded into the layers before, so that channels could be mixed. Groups are those
        of the folded networks then.
    refit_reason
        What `refit auto` became and why, in one sentence; empty where the recipe named the refit.
    """

    child: nn.Module
    parents: Sequence[nn.Module]
    recipe: Recipe
    seconds: dict[str, float]
    material: Material
    ensemble: Ensemble
    chosen: ChosenShares
    parent_labels: LabelSets | None = None
    given_template: nn.Module | None = None
    unmatched: Sequence[nn.Module] = ()
    not_converged: Sequence[str] = ()
    widths: Brought | None = None
    family: Sequence[Candidate] = ()
    steps: Sequence[Step] = ()
    folded: bool = False
    refit_reason: str = ""

    @property
    def groups(self) -> ChannelGroups:
        """The proved channel groups, of the child's width."""
        return self.material.groups

    @property
    def couplings(self) -> Sequence[Couplings]:
        """Group name -> coupling, one mapping per parent: from its channels at the child's width."""
        return self.material.couplings

    @property
    def averaged(self) -> Sequence[nn.Module]:
        """What was averaged: the parents at the child's width, changed where they were."""
        return self.material.networks

    @property
    def calibration(self) -> Loader | None:
        """The calibration images."""
        return self.material.calibration

    @property
    def example(self) -> Example | None:
        """An input that the parents take, where one is known."""
        return self.material.example

    @property
    def template(self) -> nn.Module | None:
        """A network that the child is like, where it is like none of the parents."""
        return self.material.template

    @property
    def labels(self) -> LabelSets | None:
        """Which labels the teachers' outputs stand for, where they differ."""
        return self.ensemble.labels

    @property
    def teachers(self) -> Sequence[nn.Module]:
        """The parents whose ensemble the child learned from."""
        return self.ensemble.networks

    @property
    def joint(self) -> bool:
        """Whether the teachers have one head over all labels."""
        return self.ensemble.joint

    @property
    def apart(self) -> PartialMerge | None:
        """Where channels are kept side by side: which. Groups and what was averaged are of the wider child then."""
        return self.material.apart

    @property
    def owners(self) -> Owners | None:
        """Whose alone the child's channels are, where some are kept apart."""
        return None if self.apart is None else self.apart.owners

    @property
    def information(self) -> Sequence[Mapping[str, Tensor]] | None:
        """Per parent the Fisher information of its parameters, where they are averaged by it."""
        return self.material.information

    @property
    def like(self) -> int:
        """Number of the parent whose channels the child's are matched to: it has the child's width if any has."""
        return self.recipe.align.kept if self.widths is None else self.widths.reference

    @property
    def best(self) -> Candidate | None:
        """The candidate that the child is, where the recipe's goal is the best of a family."""
        return best_of(self.family) if self.family else None

    @property
    def shares(self) -> Shares:
        """The parents' shares in the child."""
        return self.chosen.shares

    @isolated()
    def at(self, shares: Shares | Sequence[float]) -> nn.Module:
        """Average and finish another child of the same couplings, not trained on.

        With other shares, one per parent and summing to one, for the whole network, or with `Shares` that differ in its
        parts; `at(result.shares)` is the child again.

        Raises
        ------
        RecipeError
            The shares are negative or do not sum to one, or the child depends on more than couplings and shares.
        """
        shares = Shares.create(shares)
        self._check_at()
        if shares != self.shares and self.recipe.align.solver.jointly:
            solver = self.recipe.align.solver.name
            raise RecipeError(f"solver {solver} matches by the shares: fuse again to have others")
        self.recipe.changed({"merge.weights": shares.network}).shares(len(self.averaged))
        material = self._settled.at(shares)
        return material.finish(material.average(shares), shares).child

    @property
    def _settled(self) -> Material:
        """What was averaged, by the recipe that leaves nothing open."""
        return replace(self.material, recipe=self.recipe)

    def _check_at(self) -> None:
        """Raise `RecipeError` where no shares make the child again."""
        train = self.recipe.train
        for name, epochs in (("distil", train.distil), ("finetune", train.finetune)):
            if epochs:
                raise RecipeError(f"the child was trained on ({name} {epochs}): fuse again to have one of other shares")
        if self.recipe.goal.name == "best":
            raise RecipeError(
                "with goal best the child is the best of several candidates, which have shares of their own: "
                "result.family holds them, and goal child has other shares"
            )

    @isolated()
    def renormalise(
        self,
        child: nn.Module,
        couplings: Sequence[Couplings],
        shares: Shares | Sequence[float],
        method: str | None = None,
    ) -> None:
        """Renormalise an average of the parents in place, as the recipe says, or any network by another method.

        As the recipe says, layers of which all that is before them is kept apart have their parents' statistics still.
        """
        if method is not None:
            self.material.renormalise(child, couplings, shares, method)
        else:
            self._settled.renormalise_as_asked(child, couplings, shares)
