"""Layers taken one by one: without skip connections they are the channel groups, with them the function is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depfuse import find_groups
from depfuse.errors import GroupError
from depfuse.groups import ChannelGroups, random_permutations
from depfuse.models import build_network
from experiments.lib.untied import only, untied


def permuted(groups: ChannelGroups, network: nn.Module, orders: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = dict(network.state_dict())
    for group in groups.free:
        state = group.permute(state, orders[group.name])
    return state


def test_without_skip_connections_layers_are_the_groups() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 16, 3),
    ).eval()  # fmt: skip
    groups = find_groups(network, torch.zeros(1, 1, 8, 8))
    apart = untied(groups, network)
    assert [group.name for group in apart] == [group.name for group in groups.free]
    orders = random_permutations(groups, 0)
    for key, tensor in permuted(groups, network, orders).items():
        assert torch.equal(permuted(apart, network, orders)[key], tensor), key
    assert [len(group.taps) for group in apart] == [len(group.taps) for group in groups.free]


@pytest.mark.parametrize("architecture", ["digits_resnet", "cifar_resnet20(width=0.5)"])
def test_layers_of_one_stream_may_move_apart_and_the_function_is_lost(architecture: str) -> None:
    network = build_network(architecture).eval()
    example = torch.rand(2, 1, 8, 8) if architecture == "digits_resnet" else torch.rand(2, 3, 32, 32)
    groups = find_groups(network, example[:1])
    apart = untied(groups, network)
    producers = {slot.key.rpartition(".")[0] for g in groups.free for slot in g.slots if slot.role == "produces"}
    assert {group.name for group in apart} == producers
    assert len(apart) > groups.count
    # Moved as their stream is, they are the channel groups.
    tied = random_permutations(groups, 1)
    orders = {}
    for group in apart:
        order = torch.arange(group.size)
        for own in groups.free:
            for slot in own.slots:
                if slot.role == "produces" and slot.key == f"{group.name}.weight":
                    order[slot.index[:, 0]] = slot.index[tied[own.name], 0]
        orders[group.name] = order
    together, each = permuted(groups, network, tied), permuted(apart, network, orders)
    assert all(torch.equal(each[key], tensor) for key, tensor in together.items())
    before = network(example)
    network.load_state_dict(together)
    assert torch.allclose(network(example), before, atol=1e-5)
    network.load_state_dict(each | permuted(apart, network, random_permutations(apart, 2)))
    assert not torch.allclose(network(example), before, atol=1e-3)


def test_layers_are_watched_where_it_is_said() -> None:
    network = build_network("digits_resnet").eval()
    groups = find_groups(network, torch.zeros(1, 1, 8, 8))
    own = {g.name: [(t.module, t.side) for t in g.taps] for g in untied(groups, network)}
    ends = {g.name: [(t.module, t.side) for t in g.taps] for g in untied(groups, network, streams=True)}
    assert own["layer1.conv2"] == [("layer1.bn2", "output")]
    assert ends["layer1.conv2"] == [("layer1.bn2", "output"), ("layer1", "output")]
    assert ends["conv1"] == [("bn1", "output"), ("layer1.conv1", "input")]
    assert own["layer2.shortcut.0"] == ends["layer2.shortcut.0"] == [("layer2.shortcut.1", "output")]
    assert [g.name for g in only(groups, streams=True)] == ["conv1", "layer2.conv2"]
    assert [g.name for g in only(groups, streams=False)] == ["layer1.conv1", "layer2.conv1"]


def test_blocks_cannot_be_taken_one_by_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(GroupError, match="cannot be taken one by one"):
        untied(find_groups(network, torch.zeros(1, 1, 4, 4)), network)
