"""Steps that lead away from what is to be learned: noticed on a few images, and taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from depfuse.refit.second_order.natural_gradient import NaturalGradient, Taught

COMPARED = 16  # steps between two comparisons
WORSE = 1.25  # factor of the lowest loss above which steps are taken back


class Rollback:
    """Keeps the weights with which some images are fitted best, and goes back to them where that is lost.

    These images are always the same, so that their loss changes by the steps alone. Where it is `WORSE` times the
    lowest, steps are too long, or the curvature of few images says too little about others.

    Parameters
    ----------
    learner
        What takes the steps; its weights now are the first that are kept.
    images
        What is compared, with the lesson.
    """

    def __init__(self, learner: NaturalGradient, images: Sequence[Taught]) -> None:
        self._learner, self._images = learner, images
        self.kept: Mapping[str, Tensor] = dict(learner.maps)
        self.lowest = learner.loss(images)  # summed over the images, with the weights that are kept

    def compare(self) -> None:
        """Every `COMPARED` steps: keep the weights where they are the best so far, or go back to those that were."""
        loss = self._learner.loss(self._images)
        if not loss <= WORSE * self.lowest:  # nor where it is no number
            self._learner.take_back(self.kept)
        elif loss < self.lowest:
            self.kept, self.lowest = dict(self._learner.maps), loss

    def state_dict(self) -> dict[str, object]:
        """All that changes."""
        return {"kept": dict(self.kept), "lowest": self.lowest}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from what `state_dict` gave."""
        kept, lowest = state["kept"], state["lowest"]
        assert isinstance(kept, dict)
        assert isinstance(lowest, float)
        self.kept = {key: tensor.to(self._learner.maps[key]) for key, tensor in kept.items()}
        self.lowest = lowest
