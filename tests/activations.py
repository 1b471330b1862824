"""Digits networks of several activations, refitted before each; `python -m tests.activations` prints a table."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from depfuse import fuse
from depfuse.data import Loader, calibration_loader, load_data
from depfuse.errors import DepfuseWarning
from depfuse.groups import find_groups, prove_groups
from depfuse.groups.proof import random_permutations
from depfuse.train import TrainRecipe, fit

PAIRS = 3
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU 0.01": lambda: nn.LeakyReLU(0.01),
    "LeakyReLU 0.2": lambda: nn.LeakyReLU(0.2),
    "PReLU": nn.PReLU,
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Tanh": nn.Tanh,
    "none": nn.Identity,
}


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, narrow: int, wide: int, activation: Callable[[], nn.Module], stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv2, self.norm2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide)
        self.inner, self.outer, self.shortcut = activation(), activation(), nn.Identity()
        if narrow != wide:
            self.shortcut = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.norm2(self.conv2(self.inner(self.norm1(self.conv1(x))))) + self.shortcut(x))


class Network(nn.Module):
    """The shipped digits network of 8 and 16 channels, with another activation."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), activation()
        self.layer1, self.layer2 = Block(8, 8, activation, 1), Block(8, 16, activation, 2)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.activation(self.norm(self.conv(x)))))
        return self.linear(x.mean((2, 3)))


def permuted(network: nn.Module, example: Tensor, seed: int) -> nn.Module:
    """Copy a network with its channels in another order."""
    groups = prove_groups(network, find_groups(network, example), example)
    state = network.state_dict()
    for name, permutation in random_permutations(groups, seed).items():
        state = groups[name].permute(state, permutation)
    other = copy.deepcopy(network)
    other.load_state_dict(state)
    return other


def trained(activation: Callable[[], nn.Module], seed: int, low: bool) -> nn.Module:
    """Train a network on one half of the digits and a tenth of the others."""
    data = load_data("digits")
    known = (data.train.required_labels < 5) == low
    known[::10] = True
    torch.manual_seed(seed)
    network = Network(activation)
    recipe = TrainRecipe(epochs=8, batch_size=60, learning_rate=0.1, warmup=1.0, seed=seed)
    fit(network, dataclasses.replace(data, train=data.train.take(known.nonzero()[:, 0])), recipe)
    return network.eval()


def main() -> None:
    """Print the mean accuracy of parents, teachers and children of each activation."""
    data = load_data("digits")
    test = Loader(data.test, data.preprocessing, batch_size=500)
    print(f"{'activation':16}{'parents':>9}{'ensemble':>10}{'merged':>8}{'refitted':>10}   each refitted child")
    for name, activation in ACTIVATIONS.items():
        found = []
        for pair in range(PAIRS):
            parents = [trained(activation, 2 * pair + number, number == 0) for number in range(2)]
            whole, merged = (
                fuse(parents, preset, calibration_loader(data, 1000)).comparison(test)
                for preset in ("standard", "fast")
            )
            alone = statistics.mean(own.accuracy for own in whole.parents)
            found.append((alone, whole.ensemble.accuracy, merged.child.accuracy, whole.child.accuracy))
        means = [100 * statistics.mean(column) for column in zip(*found, strict=True)]
        each = ", ".join(f"{100 * row[3]:.1f}" for row in found)
        print(f"{name:16}{means[0]:9.1f}{means[1]:10.1f}{means[2]:8.1f}{means[3]:10.1f}   {each}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DepfuseWarning)
    main()
