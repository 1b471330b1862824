"""How well a child agrees with its parents' ensemble: quality without labels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from depfuse.align import Coupling, Couplings
from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import wanted_of
from depfuse.groups import ChannelGroups
from depfuse.merge import average
from depfuse.networks.running import evaluating
from depfuse.renorm import renormalise
from depfuse.tasks.outputs import as_numbers, distance_of, gives_classes

RENORM_IMAGES = 500
JUDGED_IMAGES = 500
SCALES = tuple(2.0 ** (step / 2) for step in range(-6, 7))


class Disagreement:
    """Judges alignments of a parent to the reference, or of several parents, by their child.

    Of two parents, the child is that at equal shares.

    The figure is the cross-entropy (nats) of the child's class probabilities under the mean of its parents',
    averaged over the first `JUDGED_IMAGES` calibration images; the child's BatchNorm statistics come from the
    first `RENORM_IMAGES`. No label is read. The child's scores are multiplied by the one of `SCALES` with which it is
    least: averaged networks give scores that are too small, some more than others, and no decision depends on that.
    Where outputs are no class scores it is their mean squared error (see `outputs`).

    Parameters
    ----------
    models, groups, labels, template
        As for `average`.
    renorm
        How the child is renormalised.
    calibration
        Images for that.
    reference
        Number of the parent that others are aligned to.
    joint
        Whether the parents have one head together, see `ensemble_logits`.
    judged
        The images to judge by, where they are others than these.
    labelled
        Read the labels of the images to judge by: the figure is then the cross-entropy of the child's probabilities
        under them.

    Attributes
    ----------
    seconds
        Wall-clock seconds spent so far.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        groups: ChannelGroups,
        renorm: str,
        calibration: Loader,
        labels: LabelSets | None = None,
        template: nn.Module | None = None,
        reference: int = 0,
        *,
        joint: bool = False,
        judged: Loader | None = None,
        labelled: bool = False,
    ) -> None:
        self.reference = reference
        self.seconds = 0.0
        self._models, self._groups, self._renorm = models, groups, renorm
        self._calibration, self._labels, self._template = calibration, labels, template
        self._images = calibration.first(JUDGED_IMAGES) if judged is None else judged
        self._joint, self._labelled = joint, labelled

    def __call__(self, parent: int, couplings: Couplings) -> float:
        """How far the child of the reference and `parent` is from their ensemble."""
        identity = self._identity()
        return self.together((self.reference, parent), (identity, couplings), (0.5, 0.5))

    def at_one_width(self, pair: tuple[nn.Module, nn.Module], parent: int) -> float:
        """The same for two networks that stand for the reference and `parent` at another width, as they stand."""
        identity = self._identity()
        return self._judged(pair, (self.reference, parent), (identity, identity), (0.5, 0.5))

    def together(self, members: Sequence[int], couplings: Sequence[Couplings], shares: Sequence[float]) -> float:
        """How far the child of some parents is from their ensemble, with one coupling and share for each."""
        return self._judged([self._models[member] for member in members], members, couplings, shares)

    def of_child(self, child: nn.Module, shares: Sequence[float]) -> float:
        """How far a child of all parents is from their ensemble at some shares; it is renormalised in place."""
        started = time.perf_counter()
        loss = self._loss(child, range(len(self._models)), shares, self._labels)
        self.seconds += time.perf_counter() - started
        return loss

    def _identity(self) -> Couplings:
        return {group.name: Coupling.identity(group.size) for group in self._groups.free}

    def _judged(
        self,
        models: Sequence[nn.Module],
        members: Sequence[int],
        couplings: Sequence[Couplings],
        shares: Sequence[float],
    ) -> float:
        started = time.perf_counter()
        labels = None if self._labels is None else self._labels.of(*members)
        child = average(models, self._groups, couplings, shares, labels, self._template)
        loss = self._loss(child, members, shares, labels)
        self.seconds += time.perf_counter() - started
        return loss

    def _loss(
        self, child: nn.Module, members: Sequence[int], shares: Sequence[float], labels: LabelSets | None
    ) -> float:
        renormalise(child, self._renorm, self._calibration.first(RENORM_IMAGES))
        scores = torch.cat(list(self._of(child)))
        if self._labelled:
            wanted = nn.functional.one_hot(self._images.labels, scores.shape[1]).to(scores)
        else:
            batches = zip(*(self._outputs[member] for member in members), strict=True)
            found = [wanted_of(theirs, shares, labels, joint=self._joint) for theirs in batches]
            wanted = torch.cat(found)
        return mean_or_infinite(at_best_scale(scores, wanted)[0])

    @cached_property
    def _outputs(self) -> list[list[Tensor]]:
        return [list(self._of(model)) for model in self._models]

    def _of(self, model: nn.Module) -> Iterator[Tensor]:
        with torch.inference_mode(), evaluating(model):
            for images, _ in self._images:
                yield as_numbers(model(images))


def at_best_scale(scores: Tensor, wanted: Tensor, scales: Sequence[float] = SCALES) -> tuple[Tensor, float]:
    """Cross-entropies (N,), nats, of scaled class scores under probabilities, and the scale that gives the least mean.

    Of outputs that are no class scores, the squared errors as they are: their scale is part of what they say.

    Parameters
    ----------
    scores, wanted
        (N, C), or (N, ...) of numbers.
    scales
        What the scores may be multiplied by.
    """
    distance = distance_of(scores)
    if not gives_classes(scores):
        return distance.losses(scores, wanted), 1.0
    losses = {scale: distance.losses(scale * scores, wanted) for scale in scales}
    best = min(losses, key=lambda scale: float(losses[scale].mean()))
    return losses[best], best


def mean_or_infinite(losses: Tensor) -> float:
    """The mean, and infinity where it is not a number."""
    mean = float(losses.mean())
    return mean if mean == mean else float("inf")
