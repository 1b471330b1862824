"""What a training reports, learns from and learns with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class EpochReport:
    """Where a training stands: `epoch` of `epochs` are done.

    `loss` and `accuracy` are means over the epoch's training batches (with a teacher, `accuracy` is how often the
    network chooses its class), `learning_rate` is that of the last step, `seconds` is what the epoch took, and
    `total_seconds` what all did so far.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    total_seconds: float


Progress = Callable[[EpochReport], None]


class Teacher(Protocol):
    """What a network learns instead of labels."""

    @property
    def digest(self) -> str:
        """Tells one teacher from another."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Logits (N, C) for images, without gradients."""


class Learner(Protocol):
    """Moves a network's weights, one batch of training images after another."""

    def begin_epoch(self) -> None:
        """Called before every epoch."""

    def step(self, images: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Learn one batch at a learning rate; give its loss, summed over images, and how many it named rightly."""

    def finish(self) -> None:
        """Called once after the last epoch: leave the network as it shall be used."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes from epoch to epoch, the network's weights included."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from what `state_dict` gave."""
