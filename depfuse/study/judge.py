"""Quality of a child on training images that it was not calibrated on."""

from __future__ import annotations

import math

import torch
from torch import nn

from depfuse.data.loader import Loader
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.ensemble.ensemble import Ensemble
from depfuse.evaluate.fitting import check_test_labels
from depfuse.fusion.meaning import Meaning
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.scores import ACCURACY
from depfuse.tasks.selection import selected

NOTHING = Meaning()  # is known of the outputs but their shape


class Quality:
    """Objective of a search.

    With labels it is the child's score by its task's measure (of classes the accuracy), to be maximised. Without, it is
    its distance from the parents' ensemble (`EnsembleDistance`), to be minimised.

    Parameters
    ----------
    ensemble
        The parents.
    images
        Images to judge by.
    labelled
        True to read their labels.
    meaning
        What the parents' outputs mean; they return what is learned of these.

    Attributes
    ----------
    measure
        What it is called, where it is neither the accuracy nor a disagreement in nats.

    Raises
    ------
    DataError
        The labels do not fit the outputs.
    """

    def __init__(
        self, ensemble: Ensemble, images: Loader, *, labelled: bool = False, meaning: Meaning = NOTHING
    ) -> None:
        self.labelled, self._meaning = labelled, meaning
        self.measure: str | None = None
        if labelled and ensemble.labels is None:
            check_test_labels(ensemble.networks[0], images, meaning.task or CLASSES)
        if not labelled and meaning.task is not None and not meaning.task.predicts:
            self.measure = {"regression": "squared error", "features": "cosine distance"}.get(meaning.task.name, "loss")
        self._images, self._distance = images, EnsembleDistance(ensemble, images, precision=torch.float32)

    def __call__(self, child: nn.Module) -> float:
        """Measure a child; infinite where its scores are not all finite."""
        seen = self._meaning.scores if self.labelled else self._meaning.learned
        outputs = self._distance.outputs(selected([child], seen)[0])
        if not bool(outputs.isfinite().all()):
            return math.inf
        if not self.labelled:
            return self._distance.of_outputs(outputs)
        tally = self._meaning.scored.tally()
        assert self._images.labels is not None, "labels were looked at"
        tally.add(outputs, self._images.labels.to(outputs.device))
        scores = tally.scores()
        self.measure = None if scores.measure == ACCURACY else scores.measure.name
        return scores.value
