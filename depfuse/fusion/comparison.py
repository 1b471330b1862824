"""Compare a child with everything that its user could keep instead, on the same images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

from depfuse.align import Coupling
from depfuse.data.loader import Loader
from depfuse.data.stream import Stream
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.errors import ArchitectureError, RecipeError
from depfuse.evaluate import Members, Scores, evaluate_all
from depfuse.evaluate.fitting import check_test_labels
from depfuse.fusion.advice import Advice
from depfuse.fusion.checks import check_parents, label_sets
from depfuse.fusion.contenders import advise_on
from depfuse.fusion.prepared import announce
from depfuse.fusion.shown import comparison_as_html, comparison_as_text
from depfuse.fusion.verdict import verdict
from depfuse.fusion.widths import shapes_of
from depfuse.groups import ChannelGroups
from depfuse.merge import Shares, average
from depfuse.networks.copying import unwrap
from depfuse.networks.isolation import isolated
from depfuse.progress import ProgressLike, shown
from depfuse.refit import refit_heads
from depfuse.renorm import has_running_statistics
from depfuse.tasks.selection import selected
from depfuse.teach.distil import Distillation

if TYPE_CHECKING:
    from depfuse.fusion.candidates import Candidate
    from depfuse.fusion.result import FusionResult


S = TypeVar("S")
FEWER = "fewer `test` images take less"


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """A parent trained as long as the child.

    Attributes
    ----------
    parent
        Index of the parent that was trained.
    network
        The network, in eval mode.
    scores
        Its scores.
    """

    parent: int
    network: nn.Module
    scores: Scores


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison:
    """Scores of a child and of everything that could be kept instead.

    Attributes
    ----------
    result
        The fusion that is compared.
    child, parents
        The child's, and each parent's as it was given.
    ensemble
        Of the parents' combined outputs at equal shares, see `combine_outputs`; their heads side by side where they
        know different labels.
    teacher
        Of the teachers' combined outputs, where the parents were changed to teach.
    naive, renewed
        Of the parents' average without any alignment, and with its BatchNorm reset.
    heads
        Of each parent with its head refitted to the ensemble; none without images, or where the networks cannot be
        decomposed.
    baseline
        A parent trained as long, where the child was trained.
    family
        Of each candidate, in the order of `FusionResult.family`.
    chance
        Of the best constant output, such as always predicting the most frequent label.
    file
        Where the child was written to, if it was.
    """

    result: FusionResult
    child: Scores
    parents: Sequence[Scores]
    ensemble: Scores
    teacher: Scores | None
    naive: Scores
    renewed: Scores
    heads: Sequence[Scores]
    baseline: Baseline | None
    family: Sequence[Scores]
    chance: float
    file: Path | None = None

    @cached_property
    def advice(self) -> Advice:
        """Which network to keep, and why."""
        return advise_on(self.result, self, child=self.file)

    @property
    def verdict(self) -> str:
        """The advice in words, as `depfuse fuse` says it."""
        return verdict(self.advice, self.result.best.name if self.result.best else None)

    def __repr__(self) -> str:
        return comparison_as_text(self)

    def _repr_html_(self) -> str:
        """Show the comparison in a notebook."""
        return comparison_as_html(self)


def compare(
    result: FusionResult,
    test: Loader | Stream,
    *,
    training: Distillation | None = None,
    progress: ProgressLike = None,
) -> Comparison:
    """Score a child, its parents, their ensemble and average, and other networks made of them, on labelled images.

    Parameters
    ----------
    result
        The result of `fuse`.
    test
        Labelled test images.
    training
        The training of the child, to train a parent as long; no parent is trained where None.
    progress
        Whether the progress is shown, or what is called with `heads` and `baseline` as these networks are made; see
        `fuse`.
    """
    task = result.meaning.scored
    check_test_labels(selected([result.child], result.meaning.scores)[0], test, task)
    with shown(progress) as watched:
        made = make_rivals(result, training)
        networks, counted = made.networks(result.child), result.meaning.scores
        ensembles = [Members(selected(result.scored_parents, counted), sets=result.parent_labels)]
        if result.joint or result.recipe.teach.renorm == "reset":
            ensembles.append(Members(result.teachers, result.ensemble.shares, result.labels, alone=False))
        batches = watched.track(test, "evaluating the networks", FEWER)
        combined, scores = evaluate_all(ensembles, selected(networks, counted), batches, task)
        parents, ensemble = combined[0]
        own = made.scored(scores)
        baseline = None
        if made.trained is not None and own.trained is not None:
            baseline = Baseline(parent=made.trained[0], network=made.trained[1], scores=own.trained)
        return Comparison(
            result=result,
            child=own.child,
            parents=parents,
            ensemble=ensemble,
            teacher=None if len(combined) == 1 else combined[1][1],
            naive=own.naive,
            renewed=own.renewed,
            heads=own.heads,
            baseline=baseline,
            family=[own.others.get(candidate, own.child) for candidate in result.family],
            chance=own.child.trivial,
        )


@dataclass(frozen=True, eq=False)
class Scored(Generic[S]):
    """Scores of a child and its `Rivals`; `renewed` is `naive` where there is nothing to reset."""

    naive: S
    renewed: S
    child: S
    heads: Sequence[S]
    trained: S | None
    others: Mapping[Candidate, S]


@dataclass(frozen=True, eq=False)
class Rivals:
    """Networks made of the parents beside the child.

    Attributes
    ----------
    averages
        The parents' plain average, and with its BatchNorm reset, where that is possible.
    heads
        See `heads_refitted`.
    trained
        A parent trained as long, with its index, where the child was trained.
    others
        The candidates that are not the child.
    """

    averages: Sequence[nn.Module]
    heads: Sequence[nn.Module]
    trained: tuple[int, nn.Module] | None
    others: Sequence[Candidate]

    def networks(self, child: nn.Module) -> list[nn.Module]:
        """List them with the child, in the order that `scored` takes scores in."""
        trained = [] if self.trained is None else [self.trained[1]]
        return [*self.averages, child, *self.heads, *trained, *(candidate.network for candidate in self.others)]

    def scored(self, scores: Sequence[S]) -> Scored[S]:
        """Tell whose the scores of `networks` are."""
        child, *rest = scores[len(self.averages) :]
        heads, rest = rest[: len(self.heads)], rest[len(self.heads) :]
        trained = None if self.trained is None else rest.pop(0)
        others = dict(zip(self.others, rest, strict=True))
        return Scored(scores[0], scores[len(self.averages) - 1], child, heads, trained, others)


def make_rivals(result: FusionResult, training: Distillation | None) -> Rivals:
    """Make the networks that a child is compared with, beside its parents."""
    possible = result.calibration is not None and has_running_statistics(result.parents[0])
    averages = [
        naive_child(result, result.ensemble.shares, renorm) for renorm in ("none", "reset")[: 2 if possible else 1]
    ]
    announce("heads")
    heads = heads_refitted(result)
    trained = None
    if training is not None:
        announce("baseline")
        trained = train_baseline(result, heads, training)
    return Rivals(averages, heads, trained, [candidate for candidate in result.family if candidate is not result.best])


def heads_refitted(result: FusionResult) -> list[nn.Module]:
    """Refit every parent's head to the ensemble; none without images, or where the networks cannot be decomposed."""
    if result.calibration is None:
        return []
    template = None if result.joint else result.given_template
    try:
        return refit_heads(
            result.teachers, result.ensemble.shares, result.calibration, labels=result.labels, template=template
        )
    except (ArchitectureError, RecipeError):
        return []


def train_baseline(
    result: FusionResult, heads: Sequence[nn.Module], training: Distillation
) -> tuple[int, nn.Module] | None:
    """Train a parent as long as the child; return its index, and the network.

    The parent is the one that is nearest to the ensemble on the calibration images, with its head refitted where that
    is possible. None where the parents' labels differ and no head can be refitted.
    """
    if result.labels is not None and not heads:
        return None
    candidates = list(heads) or list(result.teachers)
    number = 0
    if result.calibration is not None:
        distances = list(map(EnsembleDistance(result.ensemble, result.calibration), candidates))
        number = distances.index(min(distances))
    network = copy.deepcopy(candidates[number])
    recipe = result.recipe
    origin = recipe.model_dump_json()
    labelled = recipe.teach.labelled
    call = None if result.calibration is None else result.calibration.call
    training.read(network, call).mirroring(result.recipe.calibration.mirror).train(
        network, result.ensemble, recipe.train, seed=recipe.seed, name="parent", origin=origin, labelled=labelled
    )
    return number, network


@isolated()
def matched_average(result: FusionResult, shares: Sequence[float], renorm: str) -> nn.Module:
    """Average the matched parents at other shares, and renormalise; it is not refitted."""
    builder = result.builder
    child = builder.average(Shares.create(shares))
    builder.renormalise(child, builder.couplings, shares, renorm)
    return child


@isolated()
def naive_child(result: FusionResult, shares: Sequence[float], renorm: str) -> nn.Module:
    """Average the parents at the child's width without any alignment, and renormalise."""
    models, labels, template = result.parents, result.parent_labels, result.given_template
    if result.widths is not None or result.partial_merge is not None:
        models, labels, template = result.unmatched, result.labels, result.template
    child = naive_average(models, shares, result.groups, None if labels is None else labels.sets, template)
    identity = {group.name: Coupling.identity(group.size) for group in result.groups.free}
    result.builder.renormalise(child, [identity] * len(shares), shares, renorm)
    return child


def naive_average(
    models: Sequence[nn.Module],
    shares: Sequence[float],
    groups: ChannelGroups,
    labels: Sequence[Sequence[int]] | None = None,
    template: nn.Module | None = None,
) -> nn.Module:
    """Average parents of one width without any alignment; the arguments are those of `fuse`."""
    models = [unwrap(model) for model in models]
    sets = label_sets(labels, models, template)
    check_parents(models, sets)
    for number, model in enumerate(models if sets is None else (), start=1):
        if shapes_of(model) != shapes_of(models[0]):
            raise RecipeError(f"parent {number} has another width than parent 1: bring them to one width first")
    identities = {group.name: Coupling.identity(group.size) for group in groups.free}
    return average(models, groups, [identities] * len(models), shares, sets, template)
