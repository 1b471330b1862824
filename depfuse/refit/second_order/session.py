"""All layers of a network at once towards an ensemble: on a few images, or trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader
from depfuse.errors import ArchitectureError
from depfuse.refit.layerwise.streams import Streams
from depfuse.refit.program.decomposition import Dissected
from depfuse.refit.program.folded import Folded
from depfuse.refit.second_order.natural_gradient import Lesson, NaturalGradient
from depfuse.refit.second_order.second_pass import SecondPass
from depfuse.refit.second_order.training import NaturalGradientTraining


@dataclass(frozen=True, eq=False)
class Session:
    """A network whose layers move together.

    Attributes
    ----------
    dissected, folded
        The network.
    lesson, streams
        What it learns.
    seed
        Of what is drawn at random.
    """

    dissected: Dissected
    folded: Folded
    lesson: Lesson
    streams: Streams
    seed: int

    @classmethod
    def towards(
        cls, network: nn.Module, teacher: Callable[[Tensor, float], Tensor], images: Loader, *, seed: int = 0
    ) -> Session:
        """Any network in eval mode, towards a teacher's logits (N, C) alone, which may depend on the temperature.

        Parameters
        ----------
        network
            Changed in place by what follows.
        images
            Some training images without labels.

        Raises
        ------
        ArchitectureError
            The network cannot be taken apart, see `Program`.
        """
        dissected = Dissected.create(network, images)
        folded = Folded(dissected.program, dissected.units)

        def lesson(images: Tensor, temperature: float) -> tuple[Tensor, list[Tensor]]:
            return teacher(images, temperature), []

        return cls(dissected, folded, lesson, Streams.none(), seed)

    def second_pass(
        self, steps: int, augment: Augmentation, *, mixed: bool = False, held: Loader | None = None
    ) -> None:
        """Take some steps on the images in place, see `SecondPass`, with BatchNorm statistics of its own at the end."""
        with torch.no_grad():
            if self.folded.units:
                SecondPass(self._learner(), self.dissected.loader, augment, mixed=mixed, held=held).run(steps)
            self.dissected.renew_statistics()

    def training(self, compared: Loader, *, patient: int = 0) -> NaturalGradientTraining:
        """What trains the network on, as it is now, and compares its steps on some images that it was not fitted to.

        Raises
        ------
        ArchitectureError
            Nothing of the network can be moved.
        """
        if not self.folded.units:
            raise ArchitectureError("no layer of the network can be refitted")
        dissected = self.dissected
        learner, size = self._learner(), dissected.size
        parts = [torch.arange(first, first + size) for first in range(0, compared.count - size + 1, size)]
        last = dissected.loader.channels_last
        images = [compared.prepared(part, None, learner.generator, channels_last=last) for part in parts]
        return NaturalGradientTraining(learner, size, images, dissected.renew_statistics, patient=patient)

    def _learner(self) -> NaturalGradient:
        generator = torch.Generator().manual_seed(self.seed)
        return NaturalGradient(self.folded, self.dissected.state, self.lesson, self.streams, generator)
