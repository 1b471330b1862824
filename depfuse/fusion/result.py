"""Hold the result of a fusion: the child, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from depfuse.align import Couplings
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.fusion.agreement import AgreementComparison, compare_agreement
from depfuse.fusion.arguments import CalibrationLike, LabelsLike, as_test_loader
from depfuse.fusion.arrangement import Owners
from depfuse.fusion.candidates import Candidate, best_of
from depfuse.fusion.child_builder import ChildBuilder
from depfuse.fusion.choose_shares import ChosenShares
from depfuse.fusion.comparison import Comparison, compare
from depfuse.fusion.meaning import Meaning
from depfuse.fusion.partial_merging import PartialMerge
from depfuse.fusion.pretrained import save_pretrained
from depfuse.fusion.saving import save
from depfuse.fusion.shown import as_html, as_text
from depfuse.fusion.step_acceptance import Step
from depfuse.fusion.widths import WidthMatch
from depfuse.groups import ChannelGroups
from depfuse.merge import Shares, effective_shares
from depfuse.networks.forward import Example
from depfuse.networks.isolation import isolated
from depfuse.networks.precision import in_full_precision, with_types_of
from depfuse.progress import ProgressLike
from depfuse.recipe import Recipe
from depfuse.tasks.selection import deselect
from depfuse.teach.distil import Distillation

SLIGHT = 0.01  # of a share that is still the share


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FusionResult:
    """A child and how it was made.

    Attributes
    ----------
    child
        The fused network, in eval mode, in the channel order of parent 0, or of the one that the recipe names; of
        parent `like` where widths differ.
    parents
        The parents as they were given.
    recipe
        The settings, with every open one resolved: a fusion by it makes the same child.
    seconds
        Wall-clock seconds of `groups` (tracing and proof), `align`, `choose` (between several alignments), `merge`,
        `renorm` or `refit`, and, where they were asked for, `shares` (by part), `distil`, `self_training` and
        `finetune`.
    builder
        What was averaged, and how.
    ensemble
        The teacher: the parents as given, or with renewed statistics, or with one head.
    chosen_shares
        The parents' shares in the child, and the losses by which they were chosen where the recipe asks for that.
    parent_labels, given_template
        The labels of the parents' outputs, where they differ, and the template, as they were given.
    unmatched
        The parents at the child's width with nothing matched, in their own order of channels.
    not_converged
        One sentence for each solver that stopped at its limit; the best of its results is used.
    widths
        Where parents had other widths: how each was mapped to the child's, with the rectangular couplings.
    family
        All candidates, where the recipe's goal is the best of them.
    steps
        The child's distance from its parents' ensemble before and after each step that followed the merge, and which
        steps were kept.
    folded
        Whether BatchNorm's scales were folded into the layers before, so that channels could be mixed. The groups are
        then those of the folded networks.
    refit_reason
        How `refit auto` was resolved and why, in one sentence; empty where the recipe named the refit.
    mirroring
        Whether images were mirrored and why, in one sentence; empty where that was not asked of the parents.
    teaching
        Why the parents have no head in common as teachers, in one sentence; empty where they have or need none.
    meaning
        Which tensor of the networks' outputs counts, and what it means.
    in_one_space
        The parents with their embeddings rotated into one space, where these are what they give.
    """

    child: nn.Module
    parents: Sequence[nn.Module]
    recipe: Recipe
    seconds: dict[str, float]
    builder: ChildBuilder
    ensemble: Ensemble
    chosen_shares: ChosenShares
    parent_labels: LabelSets | None = None
    given_template: nn.Module | None = None
    unmatched: Sequence[nn.Module] = ()
    not_converged: Sequence[str] = ()
    widths: WidthMatch | None = None
    family: Sequence[Candidate] = ()
    steps: Sequence[Step] = ()
    folded: bool = False
    refit_reason: str = ""
    mirroring: str = ""
    teaching: str = ""
    meaning: Meaning = field(default_factory=Meaning)
    in_one_space: Sequence[nn.Module] = ()
    _comparisons: list[Comparison | AgreementComparison] = field(default_factory=list, init=False)
    _files: list[Path] = field(default_factory=list, init=False)

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        """Show the result in a notebook."""
        return as_html(self)

    @property
    def compared(self) -> Comparison | AgreementComparison | None:
        """The last comparison that was made; None before the first."""
        return self._comparisons[-1] if self._comparisons else None

    @property
    def verdict(self) -> str:
        """Which network to keep and why, by the last `comparison`; before there is one, how to get it."""
        if self.compared is None:
            return "No verdict yet: result.comparison(test) scores the networks on data that the fusion has not seen."
        return self.compared.verdict

    def comparison(
        self,
        test: CalibrationLike,
        labels: LabelsLike | None = None,
        *,
        training: Distillation | None = None,
        progress: ProgressLike = None,
    ) -> Comparison | AgreementComparison:
        """Score the child and all that could be kept instead, as `depfuse fuse` does.

        With labels by accuracy and loss; without, by the agreement with the parents and their ensemble, and no
        accuracy is known. The result keeps the last comparison: it shows its scores, and `verdict` is its verdict.

        Parameters
        ----------
        test
            Test data of any kind that `fuse` takes for calibration, other samples than those: with labels a data
            loader or data set of pairs, a pair of arrays (inputs, labels), depfuse's own `Loader`.
        labels
            The label of each sample, where they are not in the data.
        training, progress
            See `compare` and `fuse`.

        Raises
        ------
        DataError
            There is not one label for each sample.
        """
        networks = in_full_precision([*self.parents, self.child])
        alone = replace(self, parents=networks[:-1], child=networks[-1])
        call = None if self.calibration is None else self.calibration.call
        loader = as_test_loader(test, networks[0], labels, call)
        found: Comparison | AgreementComparison
        if loader.labels is None:
            found = compare_agreement(alone, loader, training=training, progress=progress)
        else:
            found = compare(alone, loader, training=training, progress=progress)
        return self.keep(found)

    def keep(self, compared: Comparison | AgreementComparison) -> Comparison | AgreementComparison:
        """Keep a comparison of this result, to be shown with it and written to its card, and return it."""
        if self._files and isinstance(compared, Comparison):
            compared = replace(compared, file=self._files[-1])
        self._comparisons[:] = [compared]
        return compared

    def written(self, path: str | Path) -> FusionResult:
        """Copy this result as one whose child lies in a file, which its verdict then need not say how to write."""
        copied = replace(self)
        copied._comparisons[:] = self._comparisons
        copied._lies_in(path)
        return copied

    @property
    def groups(self) -> ChannelGroups:
        """The proved channel groups, of the child's width."""
        return self.builder.groups

    @property
    def couplings(self) -> Sequence[Couplings]:
        """Group name -> coupling, one mapping per parent: from its channels at the child's width."""
        return self.builder.couplings

    @property
    def averaged(self) -> Sequence[nn.Module]:
        """What was averaged: the parents at the child's width, changed where they were."""
        return self.builder.networks

    @property
    def calibration(self) -> Loader | None:
        """The calibration images."""
        return self.builder.calibration

    @property
    def example(self) -> Example | None:
        """An input of the parents, where one is known."""
        return self.builder.example

    @property
    def template(self) -> nn.Module | None:
        """A network of the child's shapes, where no parent has them."""
        return self.builder.template

    @property
    def labels(self) -> LabelSets | None:
        """The labels of the teachers' outputs, where they differ."""
        return self.ensemble.labels

    @property
    def teachers(self) -> Sequence[nn.Module]:
        """The parents whose ensemble the child learned from."""
        return self.ensemble.networks

    @property
    def scored_parents(self) -> Sequence[nn.Module]:
        """The parents as they are scored together: of embeddings in several frames no mean means anything."""
        return self.in_one_space or self.parents

    @property
    def joint(self) -> bool:
        """Whether the teachers have one head over all labels."""
        return self.ensemble.joint

    @property
    def partial_merge(self) -> PartialMerge | None:
        """The channels that stay unmerged, where some do; groups and what was averaged are then of the wider child."""
        return self.builder.partial_merge

    @property
    def owners(self) -> Owners | None:
        """The parent that alone has each of the child's channels, where some stay unmerged."""
        return None if self.partial_merge is None else self.partial_merge.owners

    @property
    def information(self) -> Sequence[Mapping[str, Tensor]] | None:
        """Per parent the Fisher information of its parameters, where they are averaged by it."""
        return self.builder.information

    @property
    def like(self) -> int:
        """Number of the parent whose channels the child's are matched to: it has the child's width if any has."""
        return self.recipe.align.kept if self.widths is None else self.widths.reference

    @property
    def self_trained(self) -> Step | None:
        """The effect of self-training, where there was any."""
        return next((step for step in self.steps if step.stage == "train"), None)

    @property
    def best(self) -> Candidate | None:
        """The candidate that the child is, where the recipe's goal is the best of a family."""
        return best_of(self.family) if self.family else None

    @property
    def shares(self) -> Shares:
        """The parents' shares in the child."""
        return self.chosen_shares.shares

    @property
    def effective_shares(self) -> Sequence[float] | None:
        """The shares that soft couplings leave the parents, of the network's; None where these are about the same."""
        shares = self.shares.network
        left = effective_shares(self.averaged, self.groups, self.couplings, shares)
        return left if max(abs(own - given) for own, given in zip(left, shares, strict=True)) > SLIGHT else None

    def save(self, path: str | Path, arch: str | None = None) -> None:
        """Write the child as safetensors with the card that `depfuse fuse` writes, all or nothing.

        `depfuse.load(path)` reads it again.

        Parameters
        ----------
        path
            The file, which ends in .safetensors.
        arch
            What the network is, as `depfuse.models.build_network` takes it, such as "nets.py:net(depth=20)". Not needed
            for parents that `build_network` or `depfuse.load` made; for others, `load` is told by its own `arch`.

        Raises
        ------
        CheckpointError
            The file cannot be written; the one that was there is unchanged.
        ArchitectureError
            What `arch` builds is another network.
        """
        save(self, path, arch)
        self._lies_in(path)

    def save_pretrained(self, folder: str | Path, arch: str | None = None) -> None:
        """Write the child as a folder with config.json, model.safetensors and a model card.

        A network of transformers, or any other that has a method `save_pretrained`, writes itself, so that its
        `from_pretrained` loads the folder; one of timm's is loaded by ``timm.create_model("local-dir:FOLDER")``. Both,
        and every other, are loaded by `depfuse.load(folder)`. Names of classes and the pre-processing of images are
        those of the parents.

        Parameters
        ----------
        folder
            Made where it does not exist; other files in it stay.
        arch
            See `save`.
        """
        save_pretrained(self, folder, arch)
        self._lies_in(folder)

    def _lies_in(self, path: str | Path) -> None:
        self._files[:] = [Path(path)]
        if self.compared is not None:
            self.keep(self.compared)

    @isolated()
    def at(self, shares: Shares | Sequence[float]) -> nn.Module:
        """Average and finish another child of the same couplings, without training.

        The shares are one per parent, summing to one, or `Shares` that differ from part to part; `at(result.shares)` is
        the child again.

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
        builder = self._resolved.at(shares)
        return with_types_of(deselect(builder.finish(builder.average(shares), shares).child), self.parents[0])

    @property
    def _resolved(self) -> ChildBuilder:
        """What was averaged, with the resolved recipe."""
        return replace(self.builder, recipe=self.recipe)

    def _check_at(self) -> None:
        """Raise `RecipeError` where the child depends on more than couplings and shares."""
        train = self.recipe.train
        steps = {"distil": train.distil, "self_training": train.self_training, "finetune": train.finetune}
        for name, epochs in steps.items():
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
        """Renormalise an average of the parents in place by the recipe, or any network by another method.

        By the recipe, layers before which nothing is merged keep their parents' statistics.
        """
        if method is not None:
            self.builder.renormalise(child, couplings, shares, method)
        else:
            self._resolved.renormalise_as_asked(child, couplings, shares)
