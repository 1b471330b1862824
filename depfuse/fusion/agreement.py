"""Compare a child with its parents on images without labels: what can be known is how well they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from depfuse.data.loader import Loader
from depfuse.data.stream import Stream
from depfuse.evaluate import Agreement, evaluate_agreement
from depfuse.fusion.comparison import FEWER, make_rivals
from depfuse.fusion.shown import comparison_as_html, comparison_as_text
from depfuse.fusion.verdict import self_training_notes, too_few
from depfuse.progress import ProgressLike, shown
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.scores import AGREEMENT
from depfuse.tasks.selection import selected
from depfuse.teach.distil import Distillation
from depfuse.text import counted

if TYPE_CHECKING:
    from depfuse.fusion.result import FusionResult


@dataclass(frozen=True, kw_only=True, eq=False)
class AgreementBaseline:
    """A parent trained as long as the child: its index, the network, and how it agrees with the ensemble."""

    parent: int
    network: nn.Module
    scores: Agreement


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AgreementComparison:
    """How a child and its rivals agree with the parents and their ensemble.

    The attributes are those of `Comparison`, without what needs labels; the ensemble is that of the parents as they
    were given, at equal shares.
    """

    result: FusionResult
    child: Agreement
    parents: Sequence[Agreement]
    ensemble: Agreement
    naive: Agreement
    renewed: Agreement
    heads: Sequence[Agreement]
    baseline: AgreementBaseline | None
    family: Sequence[Agreement]
    teacher: None = None

    @property
    def verdict(self) -> str:
        """What the child agrees with and what follows, as `depfuse fuse` says it; the parents have numbers."""
        return agreement_verdict(self, [f"parent {number}" for number in range(1, len(self.parents) + 1)])

    def __repr__(self) -> str:
        return comparison_as_text(self)

    def _repr_html_(self) -> str:
        """Show the comparison in a notebook."""
        return comparison_as_html(self)


def compare_agreement(
    result: FusionResult,
    images: Loader | Stream,
    *,
    training: Distillation | None = None,
    progress: ProgressLike = None,
) -> AgreementComparison:
    """Measure how a child, its parents and other networks made of them agree, on images without labels.

    Parameters
    ----------
    result
        The result of `fuse`.
    images
        Images that nothing was fitted to; labels are not read.
    training, progress
        See `compare`.
    """
    with shown(progress) as watched:
        made = make_rivals(result, training)
        batches, scores_of = watched.track(images, "comparing the networks", FEWER), result.meaning.scores
        parents, ensemble, scores = evaluate_agreement(
            selected(result.scored_parents, scores_of),
            selected(made.networks(result.child), scores_of),
            batches,
            sets=result.parent_labels,
            task=result.meaning.scored,
        )
    own = made.scored(scores)
    baseline = None
    if made.trained is not None and own.trained is not None:
        baseline = AgreementBaseline(parent=made.trained[0], network=made.trained[1], scores=own.trained)
    return AgreementComparison(
        result=result,
        child=own.child,
        parents=parents,
        ensemble=ensemble,
        naive=own.naive,
        renewed=own.renewed,
        heads=own.heads,
        baseline=baseline,
        family=[own.others.get(candidate, own.child) for candidate in result.family],
    )


def agreement_verdict(found: AgreementComparison, names: Sequence[str]) -> str:
    """Say how well the child agrees with its parents and what follows; no accuracy is known.

    Parameters
    ----------
    found
        From `compare_agreement`.
    names
        What the parents are called.
    """
    child, parents, text = found.child, found.parents, found.child.measure.text
    named = zip(names, parents, strict=True)
    beside = _listed([f"{name} {text(own.ensemble)}" for name, own in named])
    shares = list(zip(names, child.members, strict=True))
    if child.measure == AGREEMENT:
        with_each = _listed([f"{text(share)} with {name}" for name, share in shares])
        sentence = (
            f"Without labels no {_measured(found)} is known. Of {counted(child.count, 'image')} the child predicts the"
            f" {_predicted(found)} for {text(child.ensemble)} ({beside}, which are part of the ensemble), and agrees on"
            f" {with_each}"
        )
        if math.isfinite(child.confidence):
            confidences = [text(scores.confidence) for scores in (child, found.ensemble)]
            sentence += f"; its mean confidence is {confidences[0]}, the ensemble's {confidences[1]}"
    else:
        with_each = _listed([f"{text(share)} under those of {name}" for name, share in shares])
        sentence = (
            f"Without targets no score is known. On {counted(child.count, 'image')} the child has {child.measure.name}"
            f" {text(child.ensemble)} under the ensemble's outputs ({beside}, which are part of the ensemble), and"
            f" {with_each}"
        )
    sentence += "."
    if caution := too_few(child.ensemble, child.count, child.measure):
        sentence += f" {caution}"
    agrees = "agrees with the ensemble on" if child.measure == AGREEMENT else "has under the ensemble's outputs"
    if found.baseline is not None:
        trained = names[found.baseline.parent]
        sentence += f" Trained as long, {trained} {agrees} {text(found.baseline.scores.ensemble)}."
    worst = min(own.ensemble for own in parents)
    average = max(found.naive.ensemble, found.renewed.ensemble)
    if average > child.ensemble:
        sentence += f" The naive average {agrees} {text(average)}: compare with it."
    elif child.ensemble < worst:
        sentence += " The child agrees with the ensemble less than every parent does: do not replace them by it unseen."
    step = found.result.self_trained
    for note in self_training_notes(None if step is None else step.kept):
        sentence += f" {note}"
    return f"{sentence} Labelled test images would tell which network to keep."


def _measured(found: AgreementComparison) -> str:
    """Name what labels would tell."""
    return "accuracy" if _of_classes(found) else "score"


def _predicted(found: AgreementComparison) -> str:
    """Name what the child and the ensemble predict alike."""
    if _of_classes(found):
        return "ensemble's class"
    dense = found.result.meaning.scored.name == "dense"
    return "ensemble's classes of places" if dense else "ensemble's labels"


def _of_classes(found: AgreementComparison) -> bool:
    return found.result.meaning.scored.name == CLASSES.name


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
