"""Networks with planted permutations, and images of noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from depfuse.align import Coupling
from depfuse.data import Loader, Preprocessing, Split
from depfuse.groups import find_groups, random_permutations
from depfuse.models import build_network
from depfuse.renorm import renormalise


def noise_images(count: int, shape=(1, 8, 8), batch_size: int = 16) -> Loader:
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    split = Split(pixels, torch.zeros(count, dtype=torch.int64))
    return Loader(split, Preprocessing(mean=(0.5,), std=(0.25,)), batch_size=batch_size)


def planted(arch: str, shape: tuple[int, ...]):
    """A network, its copy with every group permuted and one per cent of noise, and what undoes the permutation."""
    first, second = build_network(arch).eval(), build_network(arch).eval()
    for module in first.modules():
        if isinstance(module, nn.BatchNorm2d):  # no channel may be silent: two silent ones cannot be told apart
            for tensor in (module.weight.data, module.bias.data):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    renormalise(first, "reset", noise_images(200, shape))
    groups = find_groups(first, torch.zeros(1, *shape))
    permutations = random_permutations(groups, 5)
    state = dict(first.state_dict())
    for group in groups.free:
        state = group.permute(state, permutations[group.name])
    noisy = {k: t + 0.01 * t.std() * torch.randn_like(t) if t.is_floating_point() else t for k, t in state.items()}
    second.load_state_dict(noisy)
    return [first, second], groups, {name: torch.argsort(order) for name, order in permutations.items()}


def transport_cost(cost: Tensor, coupling: Coupling) -> float:
    """Sum the plan times the cost; a permutation carries 1/n at each of its pairs."""
    values = cost.detach().cpu().double()
    return float((coupling.matrix * values).sum())
