"""What natural-gradient steps are like over a whole training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Set how long the steps of a training are, and which trainings count as long.

    Attributes
    ----------
    trust
        How much the model of the loss changes in one step, as a share of the first loss, over the number of units.
    long_epochs, long_images
        A training is long from so many epochs on, with so many images in all of them: shorter steps need to be many.
    finishing
        Share of the epochs of a long training, the last ones, in which images are not mixed and the temperature is 1.
    """

    trust: float = 0.024
    long_epochs: int = 8
    long_images: int = 300_000
    finishing: float = 0.25

    def patience(self, epochs: int, images: int) -> int:
        """Return the number of epochs of a long training, 0 for a short one."""
        return epochs if epochs >= self.long_epochs and epochs * images >= self.long_images else 0
