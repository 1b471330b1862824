"""Judge alignments without labels, by their child's distance from its parents' ensemble."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from depfuse.align import Coupling, Couplings
from depfuse.ensemble.distance import EnsembleDistance, at_best_scale, mean_or_infinite
from depfuse.ensemble.ensemble import Ensemble
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.groups import ChannelGroups
from depfuse.merge import average
from depfuse.networks.stopwatch import Stopwatch, device_of
from depfuse.renorm import renormalise


class EnsembleJudge:
    """Judge alignments of a parent to the reference, or of several parents, by their child.

    Of two parents, the child is that at equal shares. It is renormalised, and its distance from their ensemble measured
    (`EnsembleDistance`), on calibration images.

    Parameters
    ----------
    ensemble
        The parents, as they are averaged; their shares are not read.
    groups, template
        As for `average`.
    renorm
        Method by which the child is renormalised.
    images
        Images for its statistics, and to judge it by.
    reference
        Number of the parent that others are aligned to.
    labelled
        Whether to read the labels of the images to judge by: the result is then the cross-entropy (nats) of the child's
        probabilities under them.

    Attributes
    ----------
    seconds
        Wall-clock seconds spent so far.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        groups: ChannelGroups,
        renorm: str,
        images: CalibrationSplit,
        template: nn.Module | None = None,
        reference: int = 0,
        *,
        labelled: bool = False,
    ) -> None:
        self.reference = reference
        self.seconds = 0.0
        self._watch = Stopwatch(device_of(ensemble.networks[0]))
        self._groups, self._renorm, self._images = groups, renorm, images
        self._template, self._labelled = template, labelled
        self._distance = EnsembleDistance(ensemble, images.judging)

    def __call__(self, parent: int, couplings: Couplings) -> float:
        """Measure the child of the reference and `parent`."""
        return self.of_members((self.reference, parent), (self._identity(), couplings), (0.5, 0.5))

    def at_one_width(self, pair: tuple[nn.Module, nn.Module], parent: int) -> float:
        """Measure the child of two networks that stand for the reference and `parent` at another width, unmatched."""
        identity = self._identity()
        return self._of_average(pair, (self.reference, parent), (identity, identity), (0.5, 0.5))

    def of_members(self, members: Sequence[int], couplings: Sequence[Couplings], shares: Sequence[float]) -> float:
        """Measure the child of some parents, with one coupling and share for each."""
        networks = self._distance.ensemble.networks
        return self._of_average([networks[member] for member in members], members, couplings, shares)

    def of_child(self, child: nn.Module, shares: Sequence[float]) -> float:
        """Measure a child of all parents from their ensemble at some shares; it is renormalised in place."""
        started = self._watch.now()
        loss = self._loss(child, self._distance if self._labelled else self._distance.at(shares))
        self.seconds += self._watch.now() - started
        return loss

    def _identity(self) -> Couplings:
        return {group.name: Coupling.identity(group.size) for group in self._groups.free}

    def _of_average(
        self,
        networks: Sequence[nn.Module],
        members: Sequence[int],
        couplings: Sequence[Couplings],
        shares: Sequence[float],
    ) -> float:
        started = self._watch.now()
        distance = self._distance.among(members, shares)
        child = average(networks, self._groups, couplings, shares, distance.ensemble.labels, self._template)
        loss = self._loss(child, distance)
        self.seconds += self._watch.now() - started
        return loss

    def _loss(self, child: nn.Module, distance: EnsembleDistance) -> float:
        renormalise(child, self._renorm, self._images.statistics)
        scores = distance.outputs(child)
        if not self._labelled:
            return distance.of_outputs(scores)
        labels = nn.functional.one_hot(self._images.judging.required_labels, scores.shape[1]).to(scores)
        return mean_or_infinite(at_best_scale(scores, labels)[0])
