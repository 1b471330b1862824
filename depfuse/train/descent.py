"""Train by stochastic gradient descent, in one process or in several that share every batch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.distributed.team import Team
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import RecipeError
from depfuse.networks.forward import Example, run_network
from depfuse.networks.memory_format import differentiable
from depfuse.networks.processor import bfloat16_pays
from depfuse.networks.replaying import Recording
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.task import Task
from depfuse.train.interfaces import Teacher
from depfuse.train.recipe import Precision, TrainRecipe

# On smaller images converting to bfloat16 and back takes longer than it saves on a CPU.
_PIXELS_THAT_PAY_FOR_BFLOAT16 = 16 * 16


class Descent:
    """SGD on labels, or towards a teacher."""

    _alone = True  # whether no other process takes part in a step

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainRecipe,
        device: torch.device,
        *,
        teacher: Teacher | None,
        fast: bool,
        task: Task = CLASSES,
    ) -> None:
        self.model, self.recipe, self.teacher, self.device, self.fast = model, recipe, teacher, device, fast
        self.task = task
        self._recorded = device.type == "cuda" and recipe.compile is None and self._alone
        self._steps = Recording(device)
        weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [
                {"params": weights, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=torch.tensor(recipe.learning_rate, device=device) if self._recorded else recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            fused=self._recorded,
        )
        if recipe.compile and device.type == "cpu":  # it chooses layouts itself, whatever the network is given
            raise RecipeError("compile is for CUDA: leave it out on a CPU")
        running = self._running()
        self.forward: nn.Module = torch.compile(running) if recipe.compile else running  # type: ignore[assignment]

    def _running(self) -> nn.Module:
        return self.model

    def begin_epoch(self) -> None:
        """Put the network into training mode."""
        self.model.train()

    def step(self, images: Example, labels: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        """Take one step on a batch; return its loss, summed over images, and the number of correct predictions."""
        for group in self.optimizer.param_groups:
            if self._recorded:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if not self._recorded:
            return self._taken(images, labels)
        taken: tuple[Tensor, Tensor] = self._steps.run(self._taken, images, labels)
        return taken

    def _taken(self, images: Example, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        with differentiable(self.device), torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            wanted = labels if self.teacher is None else self.teacher(images)
            outputs = run_network(self.forward, images)
        assert wanted is not None
        outputs = outputs.float()
        if self.teacher is None:
            loss = self.task.label_loss(outputs, wanted, self.recipe.label_smoothing)
        else:
            task = self.teacher.task_of(outputs)
            loss = task.divergence(outputs, wanted.float(), TEMPERATURE) / len(wanted)
        self.optimizer.zero_grad(set_to_none=True)
        count = len(outputs)
        self._weighted(loss, count).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        predicted = outputs.detach()
        if self.teacher is not None:
            return loss.detach() * count, task.agreements(predicted, wanted)
        return loss.detach() * count, self.task.right(predicted, wanted)

    def _weighted(self, loss: Tensor, count: int) -> Tensor:
        return loss

    def finish(self) -> None:
        """Convert the weights back to the contiguous memory layout."""
        self.model.to(memory_format=torch.contiguous_format)

    def state_dict(self) -> dict[str, Any]:
        """Collect the network's and the optimiser's state."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._recorded:
            for group in self.optimizer.param_groups:
                group["lr"] = torch.as_tensor(group["lr"], device=self.device)
        self._steps.forget()


class SharedDescent(Descent):
    """SGD on labels by several processes, each of which sees its part of every batch."""

    _alone = False

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainRecipe,
        device: torch.device,
        *,
        team: Team,
        batch: int,
        **options: Any,
    ) -> None:
        self.team, self.batch = team, batch
        super().__init__(model, recipe, device, teacher=None, **options)

    def _running(self) -> nn.Module:
        with warnings.catch_warnings():
            # Newer versions of torch have another name for it, which older ones do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return nn.parallel.DistributedDataParallel(self.model, broadcast_buffers=False)

    def _weighted(self, loss: Tensor, count: int) -> Tensor:
        # The mean of these over processes is the mean over the whole batch, where its parts are not equal too.
        return loss * (count * self.team.size / self.batch)

    def end_epoch(self, *figures: Tensor) -> list[Tensor]:
        """Average BatchNorm statistics over processes, and sum the figures."""
        for buffer in self.model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.team.add(buffer.double()) / self.team.size)
        return [self.team.add(figure) for figure in figures]


def use_bfloat16(precision: Precision, device: torch.device, image_shape: tuple[int, ...] | None) -> bool:
    """Decide whether to multiply in bfloat16, where the recipe leaves it open: where that is faster."""
    if precision != "auto":
        return precision == "bfloat16"
    large = image_shape is not None and image_shape[1] * image_shape[2] >= _PIXELS_THAT_PAY_FOR_BFLOAT16
    enough = device.type == "cuda" or large
    return enough and bfloat16_pays(device)
