"""Measure the distance of networks from an ensemble on some images, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from depfuse.data.inputs import count_samples
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.outputs import as_numbers, check_numbers, task_by_shape
from depfuse.tasks.task import Task

SCALES = tuple(2.0 ** (step / 2) for step in range(-6, 7))


class EnsembleDistance:
    """Measure how far networks are from an ensemble on the same images.

    The distance is the cross-entropy (nats) of a network's class probabilities under the ensemble's, its scores
    multiplied by the one of `SCALES` with which it is least: averaged networks have scores that are too small, and no
    decision depends on that. Where outputs are no class scores it is their mean squared error.

    Parameters
    ----------
    ensemble
        The ensemble to compare with; its members run once, when they are first needed.
    images
        Batches of inputs; labels are not read.
    precision
        Type in which outputs are compared; None for the networks' own.
    """

    def __init__(self, ensemble: Ensemble, images: Loader, *, precision: torch.dtype | None = None) -> None:
        self.ensemble, self.images, self._precision = ensemble, images, precision

    def __call__(self, network: nn.Module) -> float:
        """Measure a network: the mean over images, infinite where it is not a number."""
        return self.of_outputs(self.outputs(network))

    def of_outputs(self, outputs: Tensor) -> float:
        """Measure a network by its outputs (N, ...) for the images."""
        return mean_or_infinite(at_best_scale(outputs, self.target, task=self.ensemble.task)[0])

    def unscaled_losses(self, network: nn.Module) -> Tensor:
        """Measure a network image by image (N,), at the scale of its own scores."""
        outputs = self.outputs(network)
        return self.ensemble.task_of(outputs).losses(outputs, self.target)

    def agreement(self, outputs: Tensor) -> float | None:
        """Sum over images the share of predictions that are the ensemble's; None where none are predicted."""
        task = self.ensemble.task_of(outputs)
        return float(task.agreements(outputs, self.target)) if task.predicts else None

    @cached_property
    def target(self) -> Tensor:
        """The ensemble's outputs (N, ...)."""
        return self.ensemble.combine(self._members)

    @cached_property
    def _members(self) -> list[Tensor]:
        found = [self.outputs(network) for network in self.ensemble.networks]
        for number, own in enumerate(found):
            check_numbers(own, number)
        return found

    def outputs(self, network: nn.Module) -> Tensor:
        """Run a network on all images: its outputs (N, ...), of a dictionary or tuple all numbers of an image.

        Where they have no entry for each image, all numbers (M, 1) that it gives.
        """
        with torch.inference_mode(), evaluating(network):
            found = [(as_numbers(run_network(network, batch)), count_samples(batch)) for batch, _ in self.images]
        outputs = torch.cat([own if own.shape[:1] == (count,) else own.reshape(-1, 1) for own, count in found])
        return outputs if self._precision is None else outputs.to(self._precision)

    def at(self, shares: Sequence[float]) -> EnsembleDistance:
        """Measure the distance from the same members at other shares; none is run again."""
        return self._beside(self.ensemble.at(shares), self._members)

    def among(self, members: Sequence[int], shares: Sequence[float]) -> EnsembleDistance:
        """Measure the distance from some of the members, by number, at other shares; none is run again."""
        return self._beside(self.ensemble.among(members, shares), [self._members[member] for member in members])

    def _beside(self, ensemble: Ensemble, outputs: list[Tensor]) -> EnsembleDistance:
        distance = EnsembleDistance(ensemble, self.images, precision=self._precision)
        distance._members = outputs
        return distance


def at_best_scale(
    scores: Tensor, wanted: Tensor, scales: Sequence[float] = SCALES, *, task: Task | None = None
) -> tuple[Tensor, float]:
    """Find the scale of class scores with the least mean cross-entropy under probabilities.

    Outputs that are no scores are compared as they are: their scale is part of what they mean.

    Parameters
    ----------
    scores, wanted
        (N, C), or (N, ...) of numbers.
    scales
        Factors of the scores to choose from.
    task
        What the outputs mean; by their shape where None.

    Returns
    -------
    Tensor, float
        Cross-entropies (N,), nats, or squared errors, and the scale.
    """
    task = task or task_by_shape(scores)
    if not task.scalable:
        return task.losses(scores, wanted), 1.0
    losses = {scale: task.losses(scale * scores, wanted) for scale in scales}
    best = min(losses, key=lambda scale: float(losses[scale].mean()))
    return losses[best], best


def mean_or_infinite(losses: Tensor) -> float:
    """Average losses (N,); infinity where the mean is not a number."""
    mean = float(losses.mean())
    return mean if mean == mean else float("inf")
