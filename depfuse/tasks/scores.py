"""Scores of a network, and what they measure. Plain numbers, which need no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Unit = Literal["%", "dB", ""]


@dataclass(frozen=True)
class Measure:
    """What a score measures; the higher, the better.

    Attributes
    ----------
    name
        What it is called.
    unit
        `%` of a fraction that is written in per cent, `dB`, or none.
    """

    name: str
    unit: Unit = "%"

    @property
    def title(self) -> str:
        """The name with its unit, of a column or an axis."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def decimals(self) -> int:
        """Digits after the point."""
        return 2 if self.unit else 4

    def number(self, value: float) -> float:
        """Convert a value into its unit."""
        return 100.0 * value if self.unit == "%" else value

    def text(self, value: float | None) -> str:
        """Write a value with its unit."""
        if value is None or not math.isfinite(value):
            return "not finite"
        return f"{self.number(value):.{self.decimals}f}{f' {self.unit}' if self.unit else ''}"

    def distance(self, first: float, second: float) -> float:
        """Subtract two values as they are shown."""
        shown = [round(self.number(value), self.decimals) for value in (first, second)]
        return round(shown[0] - shown[1], self.decimals)

    def amount(self, distance: float) -> str:
        """Write the size of a distance: fractions differ by points."""
        unit = {"%": " points", "dB": " dB", "": ""}[self.unit]
        return f"{abs(distance):.{self.decimals}f}{unit}"


ACCURACY = Measure("accuracy")
PIXEL_ACCURACY = Measure("pixel accuracy")
IOU = Measure("mean IoU")
DICE = Measure("Dice")
AUROC = Measure("AUROC")
PRECISION = Measure("average precision")
RECALL = Measure("recall at 1")
CALIBRATION = Measure("calibration error")
R2 = Measure("R2", "")
RMSE = Measure("RMSE", "")
COSINE = Measure("cosine", "")
PSNR = Measure("PSNR", "dB")
SSIM = Measure("SSIM", "")
AGREEMENT = Measure("agreement")
_ALL = (ACCURACY, PIXEL_ACCURACY, IOU, DICE, AUROC, PRECISION, RECALL, CALIBRATION, R2, RMSE, COSINE, PSNR, SSIM)
_NAMED = {measure.name: measure for measure in _ALL}


def has_loss(measure: Measure) -> bool:
    """Tell whether there is a loss beside a measure: retrieval has none."""
    return measure != RECALL


def in_nats(measure: Measure) -> bool:
    """Tell whether the loss beside a measure is a cross-entropy, and not of numbers or directions."""
    return measure.unit == "%" and has_loss(measure)


def measure_named(name: str) -> Measure:
    """Return the measure of a name; one that is not known has no unit."""
    return _NAMED.get(name, Measure(name, ""))


@dataclass(frozen=True)
class Scores:
    """What one pass over labelled images tells about one network.

    Attributes
    ----------
    value : float
        By `measure`: for classes the accuracy, the fraction of the images whose largest output is the label's.
    loss : float
        Mean loss under the labels: cross-entropy in nats where outputs are logits; NaN where there is none.
    count : int
        Number of images.
    measure : Measure
        What `value` is.
    further : mapping
        Values by other measures. Of classes, the expected calibration error, a fraction: over 15 bins of equal width,
        the mean distance between confidence and accuracy, weighted by the bins' counts (Guo et al. 2017).
    trivial : float
        Value of the best constant output.
    of_images : Tensor, optional
        (count,), on the CPU: what each image contributes, in the order of the pass; their mean is `value`. Of classes
        bool: which images are right. Two networks scored on the same images can be told apart much better with it, see
        `difference`.
    """

    value: float
    loss: float
    count: int
    measure: Measure = ACCURACY
    further: Mapping[Measure, float] = field(default_factory=dict)
    trivial: float = 0.0
    of_images: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def accuracy(self) -> float:
        """Fraction of the images that are right, where that is measured."""
        return self.by(ACCURACY)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, where that is measured."""
        return self.by(CALIBRATION)

    def by(self, measure: Measure) -> float:
        """Return the value by a measure; raises `AttributeError` where it was not measured."""
        values = {self.measure: self.value, **self.further}
        if measure not in values:
            known = ", ".join(known.name for known in values)
            raise AttributeError(f"no {measure.name} is known here: the scores are {known}")
        return values[measure]
