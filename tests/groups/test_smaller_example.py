"""Proofs on smaller images, and by small parameters: they are cheaper, and find out what is wrong as before."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from depfuse.groups import TOLERANCE, ChannelGroups, find_groups, prove_groups
from depfuse.groups.smaller_example import smaller_example

IMAGE = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Four convolutions of stride 2, with something between the last two that may depend on the size of the image."""

    sizes: ClassVar[list[int]] = []  # of images in float64, as a proof has them

    def __init__(self, between: str = "nothing") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1))
        self.last = nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        inputs = 8 * (32 * 32 if between in ("pooled", "flattened") else 1)
        self.head = nn.Sequential(
            nn.Linear(inputs, 1024), nn.ReLU(), nn.Linear(1024, 2100), nn.ReLU(), nn.Linear(2100, 5)
        )
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(32 if between == "pooled" else 1)
        if between == "flattened":
            self.pool = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if x.dtype == torch.float64:
            self.sizes.append(size)
        x = self.first(x)
        if self.between == "flipped" and size > 400:
            x = x.flip(1)
        if self.between == "rolled":
            x = x.roll(size // 100, 1)
        if self.between == "constant":
            x = x + torch.arange(6.0).view(6, 1, 1).to(x) * (size > 400)
        if self.between == "scaled":
            x = x * (size // 32)
        return self.head(self.pool(self.last(x)).flatten(1))


def seen(network: Net, groups: ChannelGroups) -> tuple[ChannelGroups, set[int]]:
    """Prove groups; return them with the sizes of the images of the proof."""
    Net.sizes.clear()
    return prove_groups(network, groups, IMAGE), set(Net.sizes)


def test_the_smallest_image_with_three_places_everywhere_is_taken() -> None:
    network = Net()
    groups = find_groups(network, IMAGE)
    found = smaller_example(network, groups, IMAGE)
    assert found is not None
    assert found.shape == (1, 3, 64, 64)
    wide = smaller_example(network, groups, torch.randn(1, 3, 512, 1024))
    assert wide is not None
    assert wide.shape == (1, 3, 64, 96)


def test_a_proof_on_a_smaller_image_gives_the_same_groups() -> None:
    network = Net()
    groups = find_groups(network, IMAGE)
    small, sizes = seen(network, groups)
    assert sizes == {64}
    large = prove_groups(network, groups, IMAGE.repeat(2, 1, 1, 1))
    assert set(Net.sizes) == {64, 512}
    assert [group.name for group in small.free] == [group.name for group in large.free]
    assert len(small.free) == 6
    assert small.proof_error is not None
    assert small.proof_error < TOLERANCE


@pytest.mark.parametrize("between", ["flipped", "rolled", "constant", "scaled", "pooled", "flattened"])
def test_no_smaller_image_where_something_else_happens_on_it(between: str) -> None:
    network = Net(between)
    network.between = "nothing" if between in ("flipped", "rolled") else between
    groups = find_groups(network, IMAGE)
    network.between = between
    assert smaller_example(network, groups, IMAGE) is None


@pytest.mark.parametrize("between", ["flipped", "rolled"])
def test_what_is_wrong_on_large_images_alone_is_found_out(between: str) -> None:
    network = Net()
    groups = find_groups(network, IMAGE)
    network.between = between
    proved = prove_groups(network, groups, IMAGE)
    assert _size_of("first.3.bias", groups) == {6}
    assert _size_of("first.3.bias", proved) <= {2}  # pairs that a reversal leaves together


def _size_of(key: str, groups: ChannelGroups) -> set[int]:
    return {group.size for group in groups.free if key in {slot.key for slot in group.slots}}


def test_a_group_without_a_slot_is_found_out_by_a_proof_in_full() -> None:
    network = Net()
    groups = find_groups(network, IMAGE)
    victim = groups.free[1]
    planted = replace(
        groups,
        groups=tuple(replace(own, slots=own.slots[:-1]) if own.name == victim.name else own for own in groups.groups),
    )
    proved, sizes = seen(network, planted)
    assert sizes == {64, 512}
    assert set(proved.fixed) - set(groups.fixed) == {victim.name}


class Cancelled(nn.Module):
    """A layer whose bias has no effect, and whose weights have one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) - self.first.bias).relu())


def test_a_group_whose_vectors_have_no_effect_is_proved_by_its_other_parameters() -> None:
    torch.manual_seed(0)
    network, example = Cancelled(), torch.randn(1, 5)
    proved = prove_groups(network, find_groups(network, example), example)
    assert len(proved.free) == 1
    assert any(slot.key == "first.bias" for slot in proved.free[0].slots)
