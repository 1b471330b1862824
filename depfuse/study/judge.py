"""Quality of a child on training images that it was not calibrated on."""

from __future__ import annotations

import math

import torch
from torch import nn

from depfuse.data.loader import Loader
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.ensemble.ensemble import Ensemble


class Quality:
    """Objective of a search.

    With labels it is the child's accuracy, to be maximised. Without, it is its distance from the parents' ensemble
    (`EnsembleDistance`), to be minimised.

    Parameters
    ----------
    ensemble
        The parents.
    images
        Images to judge by.
    labelled
        True to read their labels.
    """

    def __init__(self, ensemble: Ensemble, images: Loader, *, labelled: bool = False) -> None:
        self.labelled = labelled
        self._images, self._distance = images, EnsembleDistance(ensemble, images, precision=torch.float32)

    def __call__(self, child: nn.Module) -> float:
        """Measure a child; infinite where its scores are not all finite."""
        scores = self._distance.outputs(child)
        if not bool(scores.isfinite().all()):
            return math.inf
        if self.labelled:
            return float((scores.argmax(1) == self._images.required_labels).double().mean())
        return self._distance.of_outputs(scores)
