"""Parents of a task that are trained once and kept."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse.data.inputs import take_samples
from depfuse.io.atomic_files import replacing
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from experiments.lib.tasks.scenes import Draw
from experiments.lib.tasks.tasks import TrainedTask

BATCH = 64
TEST = 1000
PARENTS = 2


def draw_for(task: TrainedTask, seed: int, number: int, *, differ: bool) -> Draw:
    """The training samples of one parent of a seed."""
    return Draw(task.count, 100 + 10 * seed + number, which=number if differ else None)


def samples_of_the_test(task: TrainedTask) -> tuple[Any, Tensor]:
    """Samples that no parent and no fusion sees."""
    return task.draw(Draw(TEST, 0, test=True))


def parents(task: TrainedTask, seed: int, folder: Path, *, differ: bool) -> list[nn.Module]:
    """The parents of a seed in evaluation mode, trained unless they lie in a folder."""
    found = []
    for number in range(PARENTS):
        torch.manual_seed(1000 * seed + number)
        network = task.network()
        inputs, target = task.draw(draw_for(task, seed, number, differ=differ))
        path = (
            folder
            / f"{re.sub(r'[^a-z0-9]+', '-', task.title.lower())}-{_digest(task, network, inputs, target)}.safetensors"
        )
        if path.is_file():
            network.load_state_dict(load_file(path))
        else:
            train(network, task, inputs, target, seed=1000 * seed + number)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                save_file(network.state_dict(), temporary)
        found.append(network.eval())
    return found


def _digest(task: TrainedTask, network: nn.Module, inputs: Any, target: Tensor) -> str:
    """Hash what a training begins with: settings, weights and samples."""
    found = hashlib.sha256(f"{task.epochs} {task.rate} {network}".encode())
    for tensor in (*network.state_dict().values(), *tree_leaves(inputs), target):
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]


def train(network: nn.Module, task: TrainedTask, inputs: Any, target: Tensor, *, seed: int) -> None:
    """Train a network by AdamW, one cycle of the learning rate; on one thread, which fixes the order of additions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), task.rate, weight_decay=1e-3)
    steps = task.epochs * (len(target) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, task.rate, total_steps=max(2, steps))
    network.train()
    for _ in range(task.epochs):
        for rows in torch.randperm(len(target), generator=generator).split(BATCH):
            if len(rows) < BATCH:
                continue
            optimiser.zero_grad()
            task.loss(run_network(network, take_samples(inputs, rows)), target[rows]).backward()
            optimiser.step()
            schedule.step()
    torch.set_num_threads(threads)


def outputs_of(network: nn.Module, inputs: Any, count: int) -> Tensor:
    """Run a network on all samples."""
    with torch.inference_mode(), evaluating(network):
        parts = [take_samples(inputs, slice(start, start + 250)) for start in range(0, count, 250)]
        return torch.cat([run_network(network, part) for part in parts])
