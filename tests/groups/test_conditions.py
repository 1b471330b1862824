"""Networks as people hand them over: on the meta device, with shared layers, several inputs and outputs, frozen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from depfuse.groups import ChannelGroups, find_groups, not_followed, prove_groups
from depfuse.models import build_network

IMAGE = torch.zeros(2, 3, 6, 6)


def proved(network: nn.Module, example: object) -> ChannelGroups:
    """The groups, all of them followed, proved as they were found."""
    found = find_groups(network, example)
    groups = prove_groups(network, found, example)
    assert groups.fixed == found.fixed
    assert groups.proof_error is not None
    assert groups.proof_error <= 1e-9
    assert not not_followed(groups)
    return groups


def slots(groups: ChannelGroups, name: str) -> set[tuple[str, int]]:
    return {(slot.key, slot.axis) for slot in groups[name].slots}


@pytest.mark.parametrize("arch", ["resnet20", "torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v2"])
def test_groups_on_the_meta_device_are_those_on_the_cpu(arch):
    example = torch.zeros(1, 3, 64, 64)
    expected = find_groups(build_network(arch).eval(), example)
    with torch.device("meta"):
        network = build_network(arch).eval()
    found = find_groups(network, example.to("meta"))
    assert [group.name for group in found] == [group.name for group in expected]
    assert found.fixed == expected.fixed
    for group, other in zip(found, expected, strict=True):
        assert [(slot.key, slot.axis) for slot in group.slots] == [(slot.key, slot.axis) for slot in other.slots]
        for slot, same in zip(group.slots, other.slots, strict=True):
            assert torch.equal(slot.index, same.index)
    assert all(tensor.is_meta for tensor in network.state_dict().values())


class CalledTwice(nn.Module):
    """One layer runs on two tensors: the channels of both are one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.shared, self.head = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        left, right = (F.silu(self.shared(F.silu(layer(x)))) for layer in (self.left, self.right))
        return self.head((left * 0.5 + right).mean((2, 3)))


def test_a_layer_called_twice_ties_what_it_reads():
    groups = proved(CalledTwice(), IMAGE)
    assert [group.size for group in groups.free] == [6, 4]
    assert {("left.weight", 0), ("right.weight", 0), ("shared.weight", 1)} <= slots(groups, "left")


class TiedWeights(nn.Module):
    """Two layers with one weight, as an encoder and its decoder have."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner, self.up = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.up.weight = self.down.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.silu(self.up(F.silu(self.inner(F.silu(self.down(x)))))))


def test_tied_weights_are_one():
    """The weight reads the network's input in one place and the inner layer in another: the inner layer stays."""
    groups = proved(TiedWeights(), torch.zeros(2, 6))
    assert [group.name for group in groups.free] == ["down"]
    assert {("down.weight", 0), ("down.bias", 0), ("up.bias", 0), ("head.weight", 1)} <= slots(groups, "down")
    assert ("up.weight", 0) in slots(groups, "down")


class Several(nn.Module):
    """Two inputs, and a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Conv2d(3, 6, 1), nn.Linear(5, 6)
        self.classes, self.box = nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        x = F.silu(self.image(image).mean((2, 3)) + self.text(text))
        return {"classes": self.classes(x), "box": self.box(x)}


def test_several_inputs_and_outputs():
    groups = proved(Several(), (IMAGE, torch.zeros(2, 5)))
    (group,) = groups.free
    assert {("image.weight", 0), ("text.weight", 0), ("classes.weight", 1), ("box.weight", 1)} <= slots(
        groups, group.name
    )
    assert set(groups.fixed.values()) == {"touches the network's input", "touches the network's output"}


def test_frozen_and_reparametrised_layers():
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.SiLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(144, 2))
    network[0].requires_grad_(False)
    parametrizations.weight_norm(network[2])
    groups = proved(network, IMAGE)
    assert [group.size for group in groups.free] == [6, 4]
    prefix = "2.parametrizations.weight"
    assert {(f"{prefix}.original0", 0), (f"{prefix}.original1", 0), ("4.weight", 1)} <= slots(groups, prefix)
    assert not network[0].weight.requires_grad


class Blurred(nn.Module):
    """A filter that is written into forward blurs every channel; each by itself, or by filters of their own."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.stem, self.head, self.alike = nn.Conv2d(3, 6, 1), nn.Linear(6, 2), alike

    def forward(self, x):
        filters = torch.tensor([1.0, 2.0, 1.0]).repeat(6, 1)[:, None, None, :]
        if not self.alike:
            filters = filters * torch.arange(1.0, 7.0)[:, None, None, None]
        x = F.conv2d(F.silu(self.stem(x)), filters, groups=6)
        return self.head(F.silu(x).mean((2, 3)))


def test_a_constant_filter_for_every_channel_is_followed():
    assert [group.size for group in proved(Blurred(alike=True), IMAGE).free] == [6]
    groups = find_groups(Blurred(alike=False), IMAGE)
    assert not groups.free
    assert groups.fixed["stem"] == "tied to a constant"
