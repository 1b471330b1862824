"""Features: embeddings of which the direction counts, and no length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.errors import DataError
from depfuse.tasks.label_kinds import are_classes, fitted_directions
from depfuse.tasks.tallies.features import FeaturesTally
from depfuse.tasks.task import check_shape, positions

LEAST_LENGTH = 1e-12


class Features:
    r"""One minus the cosine of features z and t (N, D, ...), the mean over the places of a map.

    It is :math:`\tfrac12 \lVert u - v \rVert^2` of the directions :math:`u = z / \lVert z \rVert` and v; as these have
    :math:`\partial u / \partial z = (I - u u^\top) / \lVert z \rVert`, its Gauss-Newton Hessian is
    :math:`(I - u u^\top) / \lVert z \rVert^2`.
    """

    name = "features"
    predicts = False
    scalable = False

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Features:
        """Build the task; outputs are (N, D, ...) of at least two features."""
        check_shape(cls.name, outputs, outputs[0].dim() > 1 and outputs[0].shape[1] > 1, "(N, D, ...) of two or more")
        return cls()

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Average the parents' directions."""
        return self.mean(outputs, shares)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the divergence, see the class."""
        return self.losses(outputs, target).sum()

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Project the target's direction across the outputs', over their length."""
        return -_across(F.normalize(target, dim=1), outputs) / _length(outputs) / positions(outputs)

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Project a change across the outputs' direction, over their squared length."""
        return _across(change, outputs) / _length(outputs).square() / positions(outputs)

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """Project the vectors across the outputs' direction, over their length."""
        vectors = signs.reshape(-1, *outputs.shape)
        vectors = _across(vectors, outputs[None]) / _length(outputs[None])
        return vectors.reshape(signs.shape) / math.sqrt(positions(outputs[None]))

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Sample random signs across the outputs' direction, over their length."""
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        return _across(signs, outputs) / _length(outputs) / math.sqrt(positions(outputs))

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average the parents' directions."""
        directions = [share * F.normalize(own, dim=1) for share, own in zip(shares, outputs, strict=True)]
        return F.normalize(torch.stack(directions).sum(0), dim=1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Compute directions."""
        return F.normalize(outputs, dim=1)

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute one minus the cosine (N,)."""
        losses = 1 - F.cosine_similarity(outputs, target, dim=1)
        return losses.reshape(len(losses), -1).mean(1)

    def centred(self, directions: Tensor) -> Tensor:
        """Return the directions: whether one changes the features' depends on these."""
        return directions

    def agreements(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return NaN: features do not agree or differ as classes do."""
        return torch.full((), torch.nan, dtype=torch.float32, device=outputs.device)

    def unit(self, target: Tensor) -> float:
        """Return one, the loss of features at right angles."""
        return 1.0

    def fitted_labels(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Take classes (N,) of embeddings (N, D), or embeddings of the outputs' shape."""
        return fitted_directions(labels, outputs)

    def label_loss(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Compute the mean of one minus the cosine with given embeddings.

        Raises
        ------
        DataError
            The labels are classes, of which embeddings have no loss.
        """
        if are_classes(labels):
            raise DataError(
                "the labels are classes and the outputs embeddings, which learn from embeddings alone: give embeddings"
                " as labels, or leave out train.finetune"
            )
        return self.losses(outputs, labels.float()).mean()

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return NaN: no class is predicted."""
        return self.agreements(outputs, labels)

    def tally(self) -> FeaturesTally:
        """Begin to score outputs under classes (N,) or embeddings."""
        return FeaturesTally()


def _length(outputs: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(outputs, dim=1, keepdim=True)
    return length.clamp_min(LEAST_LENGTH)


def _across(vectors: Tensor, outputs: Tensor) -> Tensor:
    """Project vectors (N, D, ...) onto what is orthogonal to the outputs."""
    direction = F.normalize(outputs, dim=1)
    across: Tensor = vectors - direction * (direction * vectors).sum(1, keepdim=True)
    return across
