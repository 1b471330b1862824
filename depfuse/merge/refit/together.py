"""All layers of a network at once towards an ensemble: on a few images, or trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from depfuse.data.augment import Augmentation
from depfuse.data.loader import Loader
from depfuse.errors import ArchitectureError
from depfuse.merge.refit.dissected import Dissected
from depfuse.merge.refit.folded import Folded
from depfuse.merge.refit.natural_gradient import Lesson, NaturalGradient
from depfuse.merge.refit.second_pass import SecondPass
from depfuse.merge.refit.streams import Streams
from depfuse.merge.refit.training import NaturalGradientTraining

COMPARED = 2  # batches


@dataclass(frozen=True, eq=False)
class Together:
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
        cls, network: nn.Module, teacher: Callable[[Tensor], Tensor], images: Loader, *, seed: int = 0
    ) -> Together:
        """Any network in eval mode, towards a teacher's logits (N, C) alone.

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
        return cls(dissected, folded, lambda inputs: (teacher(inputs), []), Streams.none(), seed)

    def second_pass(self, steps: int, augment: Augmentation, *, mixed: bool = False) -> None:
        """Take some steps on the images in place, see `SecondPass`, with BatchNorm statistics of its own at the end."""
        with torch.no_grad():
            if self.folded.units:
                SecondPass(self._learner(), self.dissected.loader, augment, mixed=mixed).run(steps)
            self.dissected.renew_statistics()

    def training(self, *, patient: bool = False) -> NaturalGradientTraining:
        """What trains the network on, as it is now; `ArchitectureError` where nothing of it can be moved."""
        if not self.folded.units:
            raise ArchitectureError("no layer of the network can be refitted")
        dissected = self.dissected
        images = [images for images, _ in islice(dissected.loader, COMPARED)]
        settle = dissected.renew_statistics
        return NaturalGradientTraining(self._learner(), dissected.size, images, settle, patient=patient)

    def _learner(self) -> NaturalGradient:
        generator = torch.Generator().manual_seed(self.seed)
        return NaturalGradient(self.folded, self.dissected.state, self.lesson, self.streams, generator)
