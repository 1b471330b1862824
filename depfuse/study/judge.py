"""Quality of a child on training images that it was not calibrated on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import wanted_of
from depfuse.fusion.agreement import at_best_scale, mean_or_infinite
from depfuse.networks.running import evaluating


class Quality:
    """Objective of a search.

    With labels it is the child's accuracy, to be maximised. Without, it is the cross-entropy (nats) of the child's
    class probabilities, at the best scale of its scores, under the mean of its parents', to be minimised.

    Parameters
    ----------
    models, shares, sets
        The parents, their shares in the ensemble, and their label sets where these differ.
    images
        Images to judge by.
    labelled
        True to read their labels.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        shares: Sequence[float],
        images: Loader,
        sets: LabelSets | None = None,
        *,
        labelled: bool = False,
    ) -> None:
        self.labelled = labelled
        self._models, self._shares, self._images, self._sets = models, shares, images, sets

    def __call__(self, child: nn.Module) -> float:
        """Measure a child; infinite where its scores are not all finite."""
        scores = torch.cat(self._scores(child))
        if not bool(scores.isfinite().all()):
            return math.inf
        if self.labelled:
            return float((scores.argmax(1) == self._images.labels).double().mean())
        return mean_or_infinite(at_best_scale(scores, self._wanted)[0])

    @cached_property
    def _wanted(self) -> Tensor:
        """Targets from the ensemble (N, ...)."""
        batches = zip(*[self._scores(model) for model in self._models], strict=True)
        return torch.cat([wanted_of(logits, self._shares, self._sets) for logits in batches])

    def _scores(self, model: nn.Module) -> list[Tensor]:
        with torch.inference_mode(), evaluating(model):
            return [model(images).float() for images, _ in self._images]
