"""Run a training epoch by epoch."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data import DataSet, Loader
from depfuse.data.inputs import Ragged, count_samples
from depfuse.data.loader import epoch_seed
from depfuse.data.stored_images import StoredImages
from depfuse.distributed.team import Team
from depfuse.errors import CheckpointError
from depfuse.io.checkpoint import state_digest
from depfuse.networks.isolation import seeded
from depfuse.networks.leaves import tensors_in
from depfuse.networks.memory_format import takes_channels_last
from depfuse.networks.running import evaluating
from depfuse.progress import work
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.task import Task
from depfuse.text import counted, first_line
from depfuse.train.descent import Descent, SharedDescent, use_bfloat16
from depfuse.train.interfaces import EpochReport, Labels, Learner, Progress, Teacher
from depfuse.train.recipe import TrainRecipe
from depfuse.train.resuming import Saving, read_state, write_state


class Run:
    """A running training: everything that changes from epoch to epoch."""

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        recipe: TrainRecipe,
        device: torch.device,
        teacher: Teacher | Labels | Tensor | None = None,
        learner: Learner | None = None,
        start: str | None = None,
        team: Team | None = None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.device = device
        self.epoch = 0
        self.loss = self.accuracy = math.nan
        self.seconds = 0.0
        task: Task = CLASSES
        if isinstance(teacher, Labels):
            data, task, teacher = replace(data, train=replace(data.train, labels=teacher.values)), teacher.task, None
        self.taught = teacher is not None or learner is not None
        soft_labels, teacher = (teacher, None) if isinstance(teacher, Tensor) else (None, teacher)
        if self.taught and not data.train.of_classes:
            data = replace(data, train=replace(data.train, labels=None))
        if isinstance(data.train.images, StoredImages):
            work().step(f"decoding {counted(len(data.train), 'image')}")
            data = replace(data, train=data.train.held())
        self.saved = time.perf_counter()
        self.loader = Loader(
            data.train if soft_labels is None else replace(data.train, labels=soft_labels),
            data.preprocessing,
            batch_size=recipe.batch_size,
            device=device,
            shuffle=True,
            augment=recipe.augmentation,
            seed=recipe.seed,
            drop_last=True,
        )
        of_classes = not self.taught and task is CLASSES
        labels = data.train.required_labels if of_classes else data.train.labels
        labels_argument = {} if labels is None else {"labels": labels}
        self.identity = {
            "recipe": recipe.model_dump(mode="json"),
            "data": state_digest({**_named(data.train.images), **labels_argument}),
            "start": state_digest(model.state_dict()) if start is None else start,
            "teacher": None if teacher is None else teacher.digest,
        }
        pictures = data.train.pictures and len(data.image_shape) == 3
        if recipe.channels_last:
            self.loader.channels_last = pictures and _in_channels_last(
                model, data.example(2, device), weights=learner is None
            )
        if learner is None:
            fast = use_bfloat16(recipe.precision, device, data.image_shape if pictures else None)
            options: dict[str, Any] = {"fast": fast}
            if team is None:
                learner = Descent(model, recipe, device, teacher=teacher, task=task, **options)
            else:
                self.loader.part = team.rank, team.size
                batch = min(recipe.batch_size, self.loader.count)
                learner = SharedDescent(model, recipe, device, team=team, batch=batch, **options)
        self.learner = learner

    @property
    def report(self) -> EpochReport:
        """The report after the epochs so far."""
        rate = self.recipe.learning_rate_at(self.epoch)
        figures = self.loss, self.accuracy, rate, 0.0, self.seconds
        return EpochReport(self.epoch, self.recipe.epochs, *figures, taught=self.taught)

    def one_epoch(self) -> EpochReport:
        """Take one pass over the training images."""
        started = time.perf_counter()
        self.learner.begin_epoch()
        self.loader.epoch = self.epoch
        # Dropout draws from the process's generator: the same in a resumed training, its own in each process.
        rank = (self.learner.team.rank,) if isinstance(self.learner, SharedDescent) else ()
        draws = isinstance(self.learner, Descent)
        with seeded(epoch_seed(self.recipe.seed, self.epoch, *rank), self.device) if draws else nullcontext():
            total, hits, count, rate = self._steps()
        self.epoch += 1
        if isinstance(self.learner, SharedDescent):
            total, hits, counted = self.learner.end_epoch(total.double(), hits, torch.tensor(count))
            count = int(counted)
        self.loss, self.accuracy = float(total) / count, float(hits) / count
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return replace(self.report, learning_rate=rate, seconds=seconds)

    def _steps(self) -> tuple[Tensor, Tensor, int, float]:
        """Take the steps of an epoch: the sum of losses, the numbers of hits and of images, the last learning rate."""
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        hits = torch.zeros((), device=self.device, dtype=torch.int64)
        count = 0
        rate = 0.0
        watched = work()
        for step, (images, labels) in enumerate(self.loader):
            rate = self.recipe.learning_rate_at(self.epoch + (step + 1) / (len(self.loader) + 1))
            loss, correct = self.learner.step(images, labels, rate)
            # Sums stay on the device: reading them would make it wait for every step.
            total += loss
            hits = hits + correct  # shares of labels or places are no whole numbers
            count += count_samples(images)
            watched.advance()
        return total, hits, count, rate

    def end_epoch(self, report: EpochReport, saving: Saving | None, progress: Progress | None) -> None:
        """Save the state where it is due, at the end in any case, and report the progress."""
        last = self.epoch == self.recipe.epochs
        if saving is not None and (last or time.perf_counter() - self.saved >= saving.seconds):
            write_state(saving.path, self.identity, self.state())
            self._keep(saving.path)
            self.saved = time.perf_counter()
        if progress is not None:
            progress(report)

    def _keep(self, path: Path) -> None:
        """Note that an interruption leaves the state."""
        work().keeps(f"{path} holds the training after epoch {self.epoch}, from which the same command goes on")

    def state(self) -> dict[str, Any]:
        """Collect all that changes from epoch to epoch."""
        return {
            "epoch": self.epoch,
            "figures": [self.loss, self.accuracy, self.seconds],
            "learner": self.learner.state_dict(),
        }

    def resume(self, path: Path | None) -> None:
        """Resume from the state at `path`, if there is one."""
        if path is None or not path.exists():
            return
        state = read_state(path, self.identity)
        try:
            self.restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is not the state of this training ({first_line(error)}): delete it to start afresh"
            ) from None
        self._keep(path)

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self.learner.load_state_dict(state["learner"])
        self.epoch = state["epoch"]
        self.loss, self.accuracy, self.seconds = state["figures"]


def _named(inputs: Any) -> dict[str, Tensor]:
    """Name the tensors of inputs, for a digest."""
    if isinstance(inputs, Tensor):
        return {"images": inputs}
    parts = inputs.parts if isinstance(inputs, Ragged) else [inputs]
    leaves = tensors_in(*parts)
    return {f"images.{number}": leaf for number, leaf in enumerate(leaves)}


def _in_channels_last(model: nn.Module, images: Tensor, *, weights: bool) -> bool:
    """Convert a network's weights to channels-last layout where it runs in that; tell whether it does."""
    if weights:
        model.to(memory_format=torch.channels_last)
    with evaluating(model):
        possible = takes_channels_last(model, images)
    if not possible:
        model.to(memory_format=torch.contiguous_format)
    return possible
