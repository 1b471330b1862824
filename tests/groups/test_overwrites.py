"""In-place writes to a part of a tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from depfuse.groups import ChannelGroups, find_groups, not_followed, prove_groups
from depfuse.groups.tracing.overwrites import Region, place_by_entries, place_by_strides

Between = Callable[[Tensor, Tensor], Tensor]


class Writing(nn.Module):
    """Two layers of 6 and of 4 channels, something written in place between them, and a last layer."""

    def __init__(self, between: Between, channels: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.between = between
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.between(self.first(x).relu(), self.second(x).relu())
        result: Tensor = self.last(joined).mean((2, 3))
        return result


def add_to_slice(first: Tensor, second: Tensor) -> Tensor:
    first = first * 2.0
    first[:, :4] += second
    return first


def add_to_view(first: Tensor, second: Tensor) -> Tensor:
    part = torch.cat([first, second], 1)[:, 2:6]
    part += second
    return part


def set_slice(first: Tensor, second: Tensor) -> Tensor:
    first = first * 2.0
    first[:, 1:5] = second
    return first


def set_every_other(first: Tensor, second: Tensor) -> Tensor:
    first = first * 2.0
    first[:, ::2] = second[:, :3]
    return first


def fill_a_canvas(first: Tensor, second: Tensor) -> Tensor:
    canvas = first.new_zeros(first.shape[0], 12, *first.shape[2:])
    canvas[:, :6] = first
    canvas[:, 8:].copy_(second)
    return canvas


def zero_slice(first: Tensor, second: Tensor) -> Tensor:
    first = first * 2.0
    first[:, 2:4].zero_()
    return first


def zero_border(first: Tensor, second: Tensor) -> Tensor:
    first = first * 2.0
    first[:, :, 0] = 0.0
    first[:, 1:3, 1:3, 1:3] *= 0.5
    return first


def rectify_slice(first: Tensor, second: Tensor) -> Tensor:
    first = first - 0.5
    torch.nn.functional.relu(first[:, :3], inplace=True)
    return first


FREE: dict[Between, list[set[str]]] = {
    add_to_slice: [{"first", "second"}, {"first"}],
    add_to_view: [{"first", "second"}],
    set_slice: [{"first"}, {"second"}],
    set_every_other: [{"first"}, {"second"}],
    fill_a_canvas: [{"first"}, {"second"}],
    zero_slice: [{"first"}],
    zero_border: [{"first"}, {"first"}],
    rectify_slice: [{"first"}, {"first"}],
}


def proved(network: nn.Module) -> ChannelGroups:
    example = torch.randn(2, 2, 6, 6)
    return prove_groups(network, find_groups(network, example), example)


@pytest.mark.parametrize("between", FREE, ids=lambda case: case.__name__)
def test_what_is_written_in_place_is_followed(between: Between) -> None:
    torch.manual_seed(0)
    channels = between(torch.zeros(1, 6, 6, 6), torch.zeros(1, 4, 6, 6)).shape[1]
    groups = proved(Writing(between, channels))
    assert not_followed(groups) == {}
    produced = [{s.key.split(".")[0] for s in group.slots if s.role == "produces"} for group in groups.free]
    assert sorted(map(sorted, produced)) == sorted(map(sorted, FREE[between]))


def views(base: torch.Tensor) -> list[torch.Tensor]:
    """Views of a tensor of three axes: parts, steps, turned axes, one axis of two, windows that overlap."""
    return [
        base[1:], base[:, 1], base[:, ::2], base[..., 1:3], base.transpose(0, 2)[1], base.permute(2, 0, 1)[:, 1:],
        base.unsqueeze(1)[0], base.unfold(2, 2, 1), base.diagonal(), base[0, 0, 0],
    ]  # fmt: skip


BASES = [torch.zeros(3, 4, 5), torch.zeros(5, 3, 4).permute(1, 2, 0), torch.zeros(3, 4, 9)[..., ::2]]


@pytest.mark.parametrize("base", BASES)
def test_the_place_of_a_view_is_the_same_by_strides_as_entry_by_entry(base):
    entries = torch.arange(base.numel()).reshape(base.shape)
    found = []
    for view in views(base):
        place, expected = place_by_strides(base, view), place_by_entries(base, view)
        found.append(place is not None)
        if place is not None:
            assert expected is not None
            regions = [Region(positions, tuple(view.shape), "set", order) for positions, order in (place, expected)]
            assert torch.equal(regions[0].view(entries), regions[1].view(entries))
    assert found == [True] * 7 + [False] * 2 + [True]
