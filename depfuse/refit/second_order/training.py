"""Natural-gradient steps over all training images, as a trainer takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from depfuse.data.augment import mix
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.refit.second_order.natural_gradient import PER_STEP, NaturalGradient
from depfuse.refit.second_order.rollback import COMPARED, Rollback

USUAL_RATE = 0.05  # learning rate at which steps have their usual length
# Of the length of a second pass's steps, which are fewer.
SHARE = 0.7
PATIENT_SHARE = 0.28  # of the same length, in a long training
# The end of a long training.
FINISHING = 0.25  # of its epochs
FINISHING_TEMPERATURE = 1.0  # at which the ensemble's own probabilities are learnt in it


class NaturalGradientTraining:
    """Moves a network batch by batch towards its lesson: a `depfuse.train.interfaces.Learner` that reads no label.

    Parameters
    ----------
    learner
        What takes the steps.
    size
        Images in a batch of the network's program.
    compared
        Some training images, one such batch after another, on which the steps are compared (`Rollback`).
    settle
        Called when the network has its new weights.
    patient
        The number of epochs of a long training, 0 for a short one. A long one sees every image many times: images of a
        batch are mixed with each other (`mix`), steps are shorter, and streams count in the first epoch only. In the
        last epochs it learns what it is wanted for: images as they are, and the ensemble's own probabilities.
    """

    def __init__(
        self,
        learner: NaturalGradient,
        size: int,
        compared: Sequence[Tensor],
        settle: Callable[[], None],
        *,
        patient: int = 0,
    ) -> None:
        self._learner, self._size, self._compared, self._settle = learner, size, compared, settle
        self._patient = patient
        self._epochs = self._steps = 0

    @property
    def _finishing(self) -> bool:
        return self._epochs > self._patient * (1 - FINISHING) > 0

    @property
    def _mixes(self) -> bool:
        return self._patient > 0 and not self._finishing

    @cached_property
    def _rollback(self) -> Rollback:
        """Of images as the steps see them, but always the same."""
        images = list(self._compared)
        if self._mixes:
            generator = torch.Generator().manual_seed(0)
            images = [mix(own, generator) for own in images]
        return Rollback(self._learner, self._learner.taught(images))

    @property
    def last_temperature(self) -> float:
        """At which it learns in the end."""
        return FINISHING_TEMPERATURE if self._patient else TEMPERATURE

    def batch_size(self, images: int) -> int:
        """How many of so many training images each step sees; 0 where these are too few for one."""
        return min(max(1, PER_STEP // self._size), images // self._size) * self._size

    def begin_epoch(self) -> None:
        """Every epoch begins with new curvature, so that one that is resumed does as well."""
        self._learner.refresh()
        mixed = self._mixes
        self._epochs += 1
        if mixed and self._finishing:
            with torch.no_grad():
                self._rollback.compare()
            del self._rollback
            self._learner.soften(FINISHING_TEMPERATURE)

    def step(self, images: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step, see `NaturalGradient.step`: the lower the rate, the shorter, and the less the streams count."""
        with torch.no_grad():
            if self._mixes:
                images = mix(images, self._learner.generator)
            batches = self._learner.taught(torch.split(images, self._size), quick=True)
            if not self._learner.begun:
                self._learner.begin(self._learner.loss(batches) / len(images))
            if self._steps % COMPARED == 0:
                self._rollback.compare()
            self._steps += 1
            part = rate / USUAL_RATE
            streams = 0.0 if self._patient and self._epochs > 1 else min(1.0, part)
            return self._learner.step(batches, (PATIENT_SHARE if self._patient else SHARE) * part, streams)

    def finish(self) -> None:
        """Give the network what was learned, in eval mode."""
        with torch.no_grad():
            self._rollback.compare()
            self._learner.write()
            self._settle()

    def state_dict(self) -> dict[str, object]:
        """All that changes from epoch to epoch."""
        own = {"epochs": self._epochs, "steps": self._steps, "guard": self._rollback.state_dict()}
        return {**own, **self._learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from what `state_dict` gave."""
        epochs, steps, rollback = state["epochs"], state["steps"], state["guard"]
        assert isinstance(epochs, int)
        assert isinstance(steps, int)
        assert isinstance(rollback, dict)
        self._epochs, self._steps = epochs, steps
        self._learner.load_state_dict(state)
        with torch.no_grad():
            self._rollback.load_state_dict(rollback)
