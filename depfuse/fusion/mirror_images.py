r"""Ask the parents whether an image and its mirror image mean the same, before anything is learned from both.

With a parent's outputs f, images x and their mirror images m(x), outputs of mirror images mirrored back where they
are maps, and D the divergence that distillation minimises at temperature 1, mirrored images are used where

.. math:: \overline{D(f(m(x)), f(x))} < \tfrac{1}{10}\, \overline{D(f(x'), f(x))}

with another image :math:`x'` for each x, and means over images and parents: a tenth of what the outputs tell of an
image. The smallest example is a parent that knows b from d and has learned no mirrored letters: on a mirrored b it says
d, and D is as large as between two letters. Networks that were trained on mirrored images are at 0.003 to 0.04 of it
(ResNet20 on CIFAR-10, on all classes and on half of them); the same images upside down are at 0.20, MNIST's digits at
0.34.

Shifts are no yardstick: a network of convolutions agrees with itself on shifted maps whatever it has learned, and one
that was trained on centred digits does not on shifted ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.tasks.task import Task
from depfuse.tasks.weighted import Weighted

IMAGES = 128
AT_ONCE = 32
MOST = 0.1  # of the divergence between outputs of two images


@dataclass(frozen=True)
class Mirroring:
    """Whether mirrored images are learned from.

    Attributes
    ----------
    allowed
        Whether they are; None where the kind of image decides it.
    because
        Why, in a sentence; empty where nobody was asked.
    """

    allowed: bool | None = None
    because: str = ""

    @classmethod
    def told_by(cls, asked: Sequence[Ensemble], images: Loader) -> Mirroring:
        """Compare the outputs for images and for their mirror images.

        Parameters
        ----------
        asked
            Each parent by itself, with a task; one head that is found for all of them later has not seen mirror images.
        images
            Unlabelled; images of a kind that is never mirrored are left alone.
        """
        if not images.suited_augmentation.flip:
            return cls()
        share = divergence_of_mirror_images(asked, images)
        if share is None:
            return cls(None, "the parents cannot tell whether images may be mirrored, which colour images are then")
        allowed = share < MOST
        differ = f"differ by {100 * share:.2g} % of what they differ by between images"
        if allowed:
            return cls(True, f"images are mirrored at random: the parents' outputs for mirror images {differ}")
        return cls(
            False,
            f"images are not mirrored: the parents' outputs for mirror images {differ}, and {100 * MOST:.0f} % is the"
            " most; `calibration.mirror=true` mirrors them all the same",
        )


def divergence_of_mirror_images(asked: Sequence[Ensemble], images: Loader) -> float | None:
    """Compute the divergence under mirroring, as a share of that between images; None where it says nothing.

    Of several tensors it is that of the one with the largest share; of a detector's, class scores alone count, as boxes
    are mirrored in their own way.
    """
    of_mirrored, of_others = dict[int, float](), dict[int, float]()
    batches = [batch for batch, _ in images.first(min(IMAGES, images.count)).in_batches(AT_ONCE)]
    for ensemble, batch in product(asked, [batch for batch in batches if len(batch) > 1]):
        outputs, mirrored = ensemble(batch, 1.0), ensemble(batch.flip(-1), 1.0)
        task = ensemble.task_of(outputs)
        pairs = zip(_tensors(task, outputs), _tensors(task, mirrored), strict=True)
        for number, ((own_task, own), (_, other)) in enumerate(pairs):
            own, back = _comparable(own, other)
            of_mirrored[number] = of_mirrored.get(number, 0.0) + float(own_task.divergence(back, own, 1.0))
            of_others[number] = of_others.get(number, 0.0) + float(own_task.divergence(own.roll(1, 0), own, 1.0))
    shares = torch.tensor([of_mirrored[number] / max(of_others[number], 1e-12) for number in of_mirrored])
    if not len(shares) or not shares.isfinite().all() or max(of_others.values()) <= 1e-12:
        return None
    return float(shares.max())


def _tensors(task: Task, outputs: Tensor) -> Iterator[tuple[Task, Tensor]]:
    """Unpack outputs (N, ...) into tensors whose mirror images are known, with their tasks."""
    if not isinstance(task, Weighted):
        yield task, outputs
        return
    for part, tensor in zip(task.parts, task.split(outputs), strict=True):
        if task.name != "detection" or part.task.predicts:
            yield part.task, tensor


def _comparable(own: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror maps of images and volumes back; places (N, C, P) without known neighbours are put into order in both."""
    if own.dim() >= 4:
        return own, mirrored.flip(-1)
    if own.dim() == 3:
        return own.sort(-1).values, mirrored.sort(-1).values
    return own, mirrored
