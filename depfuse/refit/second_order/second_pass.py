"""Improve all layers at once by natural-gradient steps on the calibration images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from depfuse.data.augment import mix
from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader
from depfuse.networks.leaves import tensors_in
from depfuse.progress import work
from depfuse.refit.second_order.natural_gradient import PER_STEP, NaturalGradient, TargetBatch
from depfuse.refit.second_order.rollback import COMPARED, Rollback

HELD_OUT = 0.125  # share of the images that steps are compared on
NOTHING = 1e-5  # a divergence due to rounding alone, in its unit
REUSED = 3  # steps that see the same augmented images, with the teacher's outputs for them
HELD_STEPS = 8  # whose images and targets are held for that, as far as they take no more than
HELD_BYTES = 2**28


class SecondPass:
    """Take natural-gradient steps of decaying length on a few images, seen many times.

    Solving layer by layer ignores what later layers make of an error; here all layers move at once. The weights with
    the lowest loss on held-out images are kept. A step takes the teacher's outputs from an earlier one with the same
    images in two of three cases (`REUSED`); these cost as much again as the network's own passes.

    Parameters
    ----------
    learner
        What takes the steps.
    calibration
        Unlabelled images in batches of the program's size.
    held
        Held-out images; the last `HELD_OUT` of the others where None.
    augment
        Augmentation of each image each time it is drawn for a step.
    mixed
        Whether images are mixed with each other (`mix`), held-out ones as well.
    at_once
        Images that the program is run on together; the size of its batches where None.
    """

    def __init__(
        self,
        learner: NaturalGradient,
        calibration: Loader,
        augment: Augmentation,
        *,
        mixed: bool = False,
        held: Loader | None = None,
        at_once: int | None = None,
    ) -> None:
        self._learner, self._augment, self._loader, self._mixed = learner, augment, calibration, mixed
        self._size = size = calibration.count // len(calibration)
        self._at_once = at_once or size
        self._seen = calibration.count
        if held is None:
            self._seen -= max(1, round(HELD_OUT * calibration.count / size)) * size
            held = calibration.between(self._seen, calibration.count)
        self._held = held
        self._order = torch.zeros(0, dtype=torch.int64)

    def run(self, steps: int) -> None:
        """Take some steps, and write the best weights, which may be the initial ones, into the network."""
        if steps == 0 or len(self._loader) < 2:
            return
        learner = self._learner
        # The program takes batches of its size only: where there are fewer images, some count twice.
        numbers = torch.arange(max(1, self._held.count // self._size) * self._size) % self._held.count
        rest = learner.with_targets(self._images(self._held, numbers))
        rollback = Rollback(learner, rest)
        first = rollback.lowest / len(numbers)
        target = torch.cat([logits for _, logits, _ in rest])
        if first <= NOTHING * learner.task_of(target).unit(target):
            return
        learner.begin(first)
        views = self._views(steps)
        for step in work().track(range(steps), "refitting all layers together"):
            learner.step(next(views), 1 - step / steps)
            if step % COMPARED == COMPARED - 1 or step == steps - 1:
                rollback.compare()
        learner.maps = dict(rollback.best)
        learner.write()

    def _images(self, loader: Loader, numbers: Tensor, augment: Augmentation | None = None) -> Sequence[Tensor]:
        """Prepare images of a loader by number, in batches that the program takes, in its memory layout."""
        parts = numbers.tensor_split(math.ceil(len(numbers) / self._at_once))
        generator = self._learner.generator
        last = self._loader.channels_last
        images = [loader.prepared(part, augment, generator, channels_last=last) for part in parts]
        return [mix(batch, generator) for batch in images] if self._mixed else images

    def _views(self, steps: int) -> Iterator[list[TargetBatch]]:
        """Draw the images of each step; the teacher is run on those of every `REUSED`-th, which are held for others."""
        held: list[list[TargetBatch]] = []
        most = HELD_STEPS
        for step in range(steps):
            place = step % (most * REUSED)
            if place == 0:
                held = []
            if place < most:
                held.append(_in_half(self._draw(PER_STEP)))
            yield held[place % most]
            if step == 0:
                most = min(most, max(1, HELD_BYTES // _bytes(held[0])))

    def _draw(self, count: int) -> list[TargetBatch]:
        """Draw images for a step without replacement, with their targets."""
        count = min(max(1, count // self._size) * self._size, self._seen // self._size * self._size)
        if len(self._order) < count:
            self._order = torch.randperm(self._seen, generator=self._learner.generator)
        chosen, self._order = self._order[:count], self._order[count:]
        return self._learner.with_targets(self._images(self._loader, chosen, self._augment), quick=True)


def _in_half(batches: Sequence[TargetBatch]) -> list[TargetBatch]:
    """Keep the targets of streams in bfloat16."""
    return [(images, logits, [target.to(torch.bfloat16) for target in streams]) for images, logits, streams in batches]


def _bytes(batches: Sequence[TargetBatch]) -> int:
    """Count the bytes of images and targets."""
    leaves = tensors_in(list(batches))
    return sum(leaf.nbytes for leaf in leaves)
