"""Declare what a training reports, its teacher and its learner."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from depfuse.networks.forward import Example
from depfuse.tasks.task import Task
from depfuse.tasks.weighted import Weighted


@dataclass(frozen=True)
class EpochReport:
    """The progress of a training after `epoch` of `epochs`.

    `loss` and `accuracy` are means over the epoch's training batches (`taught` by a teacher, `accuracy` is how often
    the network predicts its class; NaN where outputs predict none), `learning_rate` is that of the last step, `seconds`
    the time of the epoch, and `total_seconds` that of all so far.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    total_seconds: float
    taught: bool = False

    def __str__(self) -> str:
        share = "agreement with the teacher" if self.taught else "accuracy"
        known = f", {share} {100 * self.accuracy:.1f} %" if math.isfinite(self.accuracy) else ""
        return f"epoch {self.epoch} of {self.epochs}, loss {self.loss:.3f}{known}"


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of all training images.

    Attributes
    ----------
    values
        (N, ...), in the form that `Task.fitted_labels` gives them.
    task
        What the network's outputs mean.
    """

    values: Tensor
    task: Task

    @property
    def of_whole(self) -> bool:
        """Whether they are of whole images, and stay what they are where these are flipped or shifted."""
        task = self.task.main.task if isinstance(self.task, Weighted) else self.task
        return task.predicts and task.name != "dense" and self.values.dim() <= 2


Progress = Callable[[EpochReport], None]


class Teacher(Protocol):
    """Gives the targets of a network that does not learn labels."""

    @property
    def digest(self) -> str:
        """A digest that differs between teachers."""

    def task_of(self, outputs: Tensor, /) -> Task:
        """Return what outputs (N, ...) mean."""

    def __call__(self, images: Example, /) -> Tensor:
        """Compute logits (N, C) for images, without gradients."""


class Learner(Protocol):
    """Moves a network's weights, one batch of training images after another."""

    def begin_epoch(self) -> None:
        """Prepare for an epoch; called before each."""

    def step(self, images: Any, labels: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        """Take one step on a batch; return its loss, summed over images, and the number of correct predictions."""

    def finish(self) -> None:
        """Finish the network; called once after the last epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Collect all that changes from epoch to epoch, the network's weights included."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore what `state_dict` gave."""
