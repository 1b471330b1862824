"""Train a network by natural-gradient steps over all training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from depfuse.data.augment import mix
from depfuse.data.inputs import count_samples, split_samples
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.refit.second_order.natural_gradient import PER_STEP, NaturalGradient
from depfuse.refit.second_order.rollback import COMPARED, Rollback
from depfuse.refit.second_order.schedule import Schedule

USUAL_RATE = 0.05  # learning rate at which steps have their usual length
# Factors of the length of a second pass's steps, which are fewer.
SHARE = 0.7
PATIENT_SHARE = 0.28  # of the same length, in a long training
STEPS = 4  # in an epoch, at least, as far as there are so many of the program's batches
FINISHING_TEMPERATURE = 1.0  # at the end of a long training, for the ensemble's own probabilities


class NaturalGradientTraining:
    """Move a network batch by batch towards its targets: a `depfuse.train.interfaces.Learner` that reads no label.

    Parameters
    ----------
    learner
        What takes the steps.
    size
        Images in a batch of the network's program.
    compared
        Some training images, one such batch after another, on which the steps are compared (`Rollback`).
    renew_statistics
        Called when the network has its new weights.
    patient
        The number of epochs of a long training, 0 for a short one. A long one sees every image many times: images of a
        batch are mixed with each other (`mix`), steps are shorter, and streams count in the first epoch only. Its last
        epochs are on images as they are, towards the ensemble's probabilities at temperature 1.
    finishing
        The share of these last epochs, see `Schedule`.

    Attributes
    ----------
    at_once
        Images that the program is run on together, see `DecomposedNetwork`.
    """

    def __init__(
        self,
        learner: NaturalGradient,
        size: int,
        compared: Sequence[Tensor],
        renew_statistics: Callable[[], None],
        *,
        patient: int = 0,
        finishing: float = Schedule.finishing,
    ) -> None:
        self._learner, self._size, self._compared = learner, size, compared
        self.at_once = size
        self._renew_statistics = renew_statistics
        self._patient, self._share_finishing = patient, finishing
        self._epochs = self._steps = 0

    @property
    def _finishing(self) -> bool:
        return self._epochs > self._patient * (1 - self._share_finishing) > 0

    @property
    def _mixes(self) -> bool:
        return self._patient > 0 and not self._finishing

    @cached_property
    def _rollback(self) -> Rollback:
        """The rollback, on images mixed as those of the steps, but always the same."""
        images = list(self._compared)
        if self._mixes:
            generator = torch.Generator().manual_seed(0)
            images = [mix(batch, generator) for batch in images]
        return Rollback(self._learner, self._learner.with_targets(images))

    @property
    def last_temperature(self) -> float:
        """The temperature of the last epochs."""
        return FINISHING_TEMPERATURE if self._patient else TEMPERATURE

    def batch_size(self, images: int) -> int:
        """Compute the number of images in a step from that of all training images; 0 where these are too few."""
        batches = images // self._size
        return min(max(1, PER_STEP // self._size), max(1, batches // STEPS), batches) * self._size

    def begin_epoch(self) -> None:
        """Discard the curvature, so that a resumed training and an uninterrupted one are the same."""
        self._learner.refresh()
        mixed = self._mixes
        self._epochs += 1
        if mixed and self._finishing:
            with torch.no_grad():
                self._rollback.compare()
            del self._rollback
            self._learner.soften(FINISHING_TEMPERATURE)

    def step(self, images: Tensor, labels: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        """Take one step, see `NaturalGradient.step`: its length and the streams' weight follow the learning rate."""
        with torch.no_grad():
            if self._mixes:
                images = mix(images, self._learner.generator)
            batches = self._learner.with_targets(list(split_samples(images, self.at_once)), quick=True)
            if not self._learner.begun:
                self._learner.begin(self._learner.loss(batches) / count_samples(images))
            if self._steps % COMPARED == 0:
                self._rollback.compare()
            self._steps += 1
            part = rate / USUAL_RATE
            streams = 0.0 if self._patient and self._epochs > 1 else min(1.0, part)
            return self._learner.step(batches, (PATIENT_SHARE if self._patient else SHARE) * part, streams)

    def finish(self) -> None:
        """Write the best weights into the network, and renew its statistics."""
        with torch.no_grad():
            self._rollback.compare()
            self._learner.write()
            self._renew_statistics()

    def state_dict(self) -> dict[str, object]:
        """Collect all that changes from epoch to epoch."""
        progress = {"epochs": self._epochs, "steps": self._steps, "guard": self._rollback.state_dict()}
        return {**progress, **self._learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` gave."""
        epochs, steps, rollback = state["epochs"], state["steps"], state["guard"]
        assert isinstance(epochs, int)
        assert isinstance(steps, int)
        assert isinstance(rollback, dict)
        self._epochs, self._steps = epochs, steps
        self._learner.load_state_dict(state)
        with torch.no_grad():
            self._rollback.load_state_dict(rollback)
