"""Plain numbers: one, a row of them, or maps, sequences and images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depfuse.tasks.label_kinds import fitted_numbers
from depfuse.tasks.tallies.regression import RegressionTally

LEAST_VARIANCE = 1e-6  # of an output, relative to its mean square: one that hardly varies is constant


class Regression:
    r"""Squared error of m numbers per image, :math:`\sum_i (z_i - t_i)^2 / (2 m s_i^2)`; it ignores temperatures.

    Parameters
    ----------
    spread
        Spreads :math:`s` (C,), one for each channel of the outputs (N, C, ...), so that each counts alike whatever its
        unit; all are one where None.
    """

    name = "regression"
    predicts = False
    scalable = False

    def __init__(self, spread: Tensor | None = None) -> None:
        self.spread = spread

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Regression:
        """Build the task with the spread of each channel over images and places, the mean of the parents'."""
        if outputs[0].dim() < 2 or outputs[0].shape[1] < 2 or len(outputs[0]) < 2:
            return cls()
        return cls(cls._spread_of(outputs))

    @classmethod
    def of_targets(cls, targets: Tensor) -> Regression:
        """Build the task in units of the targets (N, ...) that are learned; one number per image has a unit, too."""
        return cls(cls._spread_of([targets if targets.dim() > 1 else targets[:, None]]))

    @staticmethod
    def _spread_of(outputs: Sequence[Tensor]) -> Tensor | None:
        """Compute the spread (C,) of each channel, the mean of the networks'; None where nothing varies."""
        channels = [own.movedim(1, 0).flatten(1).double() for own in outputs]
        variance = torch.stack([own.var(1, correction=0) for own in channels]).mean(0)
        square = torch.stack([own.square().mean(1) for own in channels]).mean(0)
        variance = variance.maximum(LEAST_VARIANCE * square)
        # What is zero throughout has no unit of its own.
        return variance.where(variance > 0, variance.max()).sqrt() if float(variance.max()) > 0 else None

    def ensemble_target(self, outputs: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
        """Average the parents' outputs."""
        return self.mean(outputs, shares)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Compute the divergence, see the class."""
        return 0.5 * self.losses(outputs, target).sum()

    def slope(self, outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Divide the difference by m and the squared spread."""
        return self._scaled(self._scaled(outputs - target)) / _numbers(outputs)

    def curvature_product(self, change: Tensor, outputs: Tensor, temperature: float) -> Tensor:
        """Multiply by H = 1 / (m s^2)."""
        return self._scaled(self._scaled(change)) / _numbers(outputs)

    def factor(self, outputs: Tensor, signs: Tensor) -> Tensor:
        """Divide by the spread, as for outputs whose errors have that deviation."""
        return self._scaled(signs.reshape(-1, *outputs.shape)).reshape(signs.shape)

    def sample(self, outputs: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """Sample random signs, scaled by 1 / (s sqrt(m))."""
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        drawn: Tensor = self._scaled(signs) / _numbers(outputs) ** 0.5
        return drawn

    def mean(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Average the parents' outputs."""
        return torch.stack([share * output for share, output in zip(shares, outputs, strict=True)]).sum(0)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the outputs, which are the predictions."""
        return outputs

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute mean squared differences (N,), in units of the spread."""
        return self._scaled(outputs - target).reshape(len(outputs), -1).square().mean(1)

    def centred(self, directions: Tensor) -> Tensor:
        """Return the directions: each changes the predictions."""
        return directions

    def agreements(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return NaN: numbers do not agree or differ as classes do."""
        return torch.full((), torch.nan, dtype=torch.float32, device=outputs.device)

    def unit(self, target: Tensor) -> float:
        """Compute half the variance of the target over images, in units of the spread."""
        return 0.5 * float(self._scaled(target).reshape(len(target), -1).var(0, correction=0).mean())

    def fitted_labels(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Give targets the shape of the outputs."""
        return fitted_numbers(labels, outputs)

    def label_loss(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Compute half the mean squared error, in units of the spread; numbers are not smoothed."""
        return 0.5 * self.losses(outputs, labels).mean()

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return NaN: no class is predicted."""
        return self.agreements(outputs, labels)

    def tally(self) -> RegressionTally:
        """Begin to score outputs under targets."""
        return RegressionTally()

    def _scaled(self, numbers: Tensor) -> Tensor:
        """Divide numbers (N, C, ...) by the spreads."""
        if self.spread is None:
            return numbers
        return numbers / self.spread.to(numbers).reshape(-1, *[1] * max(0, numbers.dim() - 2))


def _numbers(outputs: Tensor) -> int:
    return max(1, outputs[0].numel())
