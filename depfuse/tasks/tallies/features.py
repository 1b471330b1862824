"""Scores of embeddings: retrieval of images of the same class, or the cosine with given embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.tasks.label_kinds import are_classes, fitted_directions
from depfuse.tasks.scores import COSINE, RECALL, Scores
from depfuse.tasks.tallies.tally import finite, joined

ROWS = 1024  # of images whose neighbours are looked for at once


class FeaturesTally:
    """Embeddings (N, D, ...) of batches under classes (N,), or under embeddings of the same shape.

    Under classes the value is recall at 1: the share of the images whose nearest neighbour among all others, by the
    cosine, is of the same class (Musgrave et al. 2020, section 3.3). Under embeddings it is the mean cosine.
    """

    def __init__(self) -> None:
        self._found: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._sums: Tensor | int = 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in a batch."""
        labels = fitted_directions(labels, outputs)
        directions = F.normalize(finite(outputs), dim=1)
        if are_classes(labels):
            self._found.append(directions)
            self._labels.append(labels)
            return
        wanted = F.normalize(labels.float(), dim=1)
        cosines = (directions * wanted).sum(1).reshape(len(wanted), -1)
        self._found.append(cosines.mean(1).double().cpu())
        self._sums = self._sums + wanted.double().movedim(1, -1).reshape(-1, wanted.shape[1]).sum(0).cpu() / (
            max(1, wanted.shape[2:].numel())
        )

    def scores(self) -> Scores:
        """Compute the cosine or the recall; there is no loss under classes."""
        found = joined(self._found)
        if not self._labels:
            assert isinstance(self._sums, Tensor)
            trivial = float(torch.linalg.vector_norm(self._sums)) / len(found)
            value = float(found.mean())
            return Scores(value, 1 - value, len(found), COSINE, {}, trivial, found)
        labels = joined(self._labels)
        right = torch.cat([self._nearest(found, labels, start) for start in range(0, len(found), ROWS)]).cpu()
        counts = torch.bincount(labels.cpu()).double()
        chance = float((counts * (counts - 1)).sum() / max(1, len(found) * (len(found) - 1)))
        return Scores(float(right.double().mean()), math.nan, len(found), RECALL, {}, chance, right)

    @staticmethod
    def _nearest(found: Tensor, labels: Tensor, start: int) -> Tensor:
        """Tell of some images whether the nearest other one is of their class."""
        own = found[start : start + ROWS]
        cosines = own @ found.T
        number = torch.arange(len(own), device=found.device)
        cosines[number, number + start] = -torch.inf
        return labels[cosines.argmax(1)] == labels[start : start + ROWS]
