"""Natural-gradient steps over all training images, as a trainer takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from depfuse.merge.refit.natural_gradient import PER_STEP, NaturalGradient

USUAL_RATE = 0.05
SHARE = 0.7  # of the length of a second pass's steps, which are fewer


class NaturalGradientTraining:
    """Moves a network batch by batch towards its lesson: a `depfuse.train.Learner` that reads no label.

    Parameters
    ----------
    learner
        What takes the steps.
    size
        Images in a batch of the network's program.
    settle
        Called when the network has its new weights.
    """

    def __init__(self, learner: NaturalGradient, size: int, settle: Callable[[], None]) -> None:
        self._learner, self._size, self._settle = learner, size, settle

    def batch_size(self, images: int) -> int:
        """How many of so many training images each step sees; 0 where these are too few for one."""
        return min(max(1, PER_STEP // self._size), images // self._size) * self._size

    def begin_epoch(self) -> None:
        """Every epoch begins with new curvature, so that one that is resumed does as well."""
        self._learner.refresh()

    def step(self, images: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step, see `NaturalGradient.step`: the lower the rate, the shorter, and the less the streams count."""
        with torch.no_grad():
            batches = self._learner.taught(torch.split(images, self._size), quick=True)
            if not self._learner.begun:
                self._learner.begin(self._learner.loss(batches) / len(images))
            part = rate / USUAL_RATE
            return self._learner.step(batches, SHARE * part, min(1.0, part))

    def finish(self) -> None:
        """Give the network what was learned, in eval mode."""
        with torch.no_grad():
            self._learner.write()
            self._settle()

    def state_dict(self) -> dict[str, object]:
        """All that changes from epoch to epoch."""
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from what `state_dict` gave."""
        self._learner.load_state_dict(state)
