"""Restore the best weights where steps have made the loss on a few images worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from depfuse.refit.second_order.natural_gradient import NaturalGradient, TargetBatch, copied

COMPARED = 16  # steps between two comparisons
WORSE = 1.25  # factor of the lowest loss above which steps are taken back


class Rollback:
    """Keep the weights with the lowest loss on some images, and restore them where it rises.

    The images are always the same, so that their loss changes by the steps alone. Where it exceeds `WORSE` times the
    lowest, steps are too long, or the curvature of few images does not carry over to others.

    Parameters
    ----------
    learner
        What takes the steps, from its present weights on.
    images
        Images to compare on, with their targets.
    """

    def __init__(self, learner: NaturalGradient, images: Sequence[TargetBatch]) -> None:
        self._learner, self._images = learner, images
        self.best: Mapping[str, Tensor] = copied(learner.maps)
        self.lowest = learner.loss(images)  # of the best weights, summed over the images

    def compare(self) -> None:
        """Keep the weights where they are the best so far, or restore the best; called every `COMPARED` steps."""
        loss = self._learner.loss(self._images)
        if not loss <= WORSE * self.lowest:  # also where it is not a number
            self._learner.restore(self.best)
        elif loss < self.lowest:
            self.best, self.lowest = copied(self._learner.maps), loss

    def state_dict(self) -> dict[str, object]:
        """Collect the best weights and their loss."""
        return {"kept": dict(self.best), "lowest": self.lowest}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` gave."""
        best, lowest = state["kept"], state["lowest"]
        assert isinstance(best, dict)
        assert isinstance(lowest, float)
        self.best = {key: tensor.to(self._learner.maps[key]) for key, tensor in best.items()}
        self.lowest = lowest
