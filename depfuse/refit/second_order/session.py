"""Move all layers of a network at once towards an ensemble, on calibration images or all training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader
from depfuse.errors import ArchitectureError
from depfuse.refit.layerwise.streams import Streams
from depfuse.refit.program.decomposition import DecomposedNetwork
from depfuse.refit.program.folded import Folded
from depfuse.refit.second_order.natural_gradient import NaturalGradient, TeacherFunction
from depfuse.refit.second_order.schedule import Schedule
from depfuse.refit.second_order.second_pass import SecondPass
from depfuse.refit.second_order.training import NaturalGradientTraining
from depfuse.tasks.task import Task

STANDARD = Schedule()


@dataclass(frozen=True, eq=False)
class Session:
    """A network whose layers move together.

    Attributes
    ----------
    decomposed, folded
        The network.
    teacher, streams
        The targets of its outputs and of its streams.
    seed
        Of what is drawn at random.
    task
        What the outputs mean; by their shape where None.
    """

    decomposed: DecomposedNetwork
    folded: Folded
    teacher: TeacherFunction
    streams: Streams
    seed: int
    task: Task | None = None

    @classmethod
    def towards(
        cls,
        network: nn.Module,
        teacher: Callable[[Tensor, float], Tensor],
        images: Loader,
        *,
        seed: int = 0,
        task: Task | None = None,
    ) -> Session:
        """Prepare any network in eval mode to learn a teacher's logits (N, C) alone.

        Parameters
        ----------
        network
            Changed in place by `second_pass` and `training`.
        teacher
            Images, temperature -> logits.
        images
            Some training images without labels.
        task
            What the outputs mean; by their shape where None.

        Raises
        ------
        ArchitectureError
            The network cannot be decomposed, see `Program`.
        """
        decomposed = DecomposedNetwork.create(network, images)
        folded = Folded(decomposed.program, decomposed.units)

        def logits_alone(images: Tensor, temperature: float) -> tuple[Tensor, list[Tensor]]:
            return teacher(images, temperature), []

        return cls(decomposed, folded, logits_alone, Streams.none(), seed, task)

    def second_pass(
        self, steps: int, augment: Augmentation, *, mixed: bool = False, held: Loader | None = None
    ) -> None:
        """Take some steps in place, see `SecondPass`, then set every BatchNorm's statistics to those of its inputs.

        Without steps nothing changes.
        """
        if steps == 0:
            return
        with torch.no_grad():
            if self.folded.units:
                images, at_once = self.decomposed.loader, self.decomposed.at_once
                SecondPass(self._learner(), images, augment, mixed=mixed, held=held, at_once=at_once).run(steps)
            self.decomposed.renew_statistics()

    def training(self, compared: Loader, *, patient: int = 0, schedule: Schedule = STANDARD) -> NaturalGradientTraining:
        """Prepare the training of the network, as it is now, on all training images.

        Parameters
        ----------
        compared
            Images by which the steps are compared; others than those that the network was fitted to.
        patient
            See `NaturalGradientTraining`.
        schedule
            Its trust and the share of the last epochs.

        Raises
        ------
        ArchitectureError
            The network has no unit that can be refitted.
        """
        if not self.folded.units:
            raise ArchitectureError("no layer of the network can be refitted")
        decomposed = self.decomposed
        learner, size = self._learner(schedule.trust), decomposed.size
        parts = [torch.arange(first, first + size) for first in range(0, compared.count - size + 1, size)]
        last = decomposed.loader.channels_last
        images = [compared.prepared(part, None, learner.generator, channels_last=last) for part in parts]
        renew, finishing = decomposed.renew_statistics, schedule.finishing
        training = NaturalGradientTraining(learner, size, images, renew, patient=patient, finishing=finishing)
        training.at_once = decomposed.at_once
        return training

    def _learner(self, trust: float = STANDARD.trust) -> NaturalGradient:
        generator = torch.Generator().manual_seed(self.seed)
        state = self.decomposed.state
        return NaturalGradient(self.folded, state, self.teacher, self.streams, generator, trust=trust, task=self.task)
