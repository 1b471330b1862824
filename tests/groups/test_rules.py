"""One small network for each rule that is easily got wrong."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import fuse
from depfuse.errors import GroupError
from depfuse.groups import ChannelGroups, find_groups, not_followed, prove_groups, random_permutations
from depfuse.groups.proof import NO_EFFECT
from depfuse.groups.reasons import CONSTANT, PARTS, SINGLE, TOUCHES_INPUT, TOUCHES_OUTPUT

IMAGE = torch.zeros(2, 3, 4, 4)
TOKENS = torch.zeros(2, 5, 6)


def proved(network: nn.Module, example: Tensor) -> ChannelGroups:
    """The groups, of which the proof had to fix none."""
    found = find_groups(network, example)
    groups = prove_groups(network, found, example)
    assert groups.fixed == found.fixed
    assert groups.proof_error is not None
    assert groups.proof_error <= 1e-9
    return groups


def moved_by(groups: ChannelGroups, key: str, axis: int = 0) -> list[list[list[int]]]:
    """For each free group with a slot there, the positions of each channel; blocks before what is in them."""
    return [
        slot.index.tolist() for group in groups.free for slot in group.slots if (slot.key, slot.axis) == (key, axis)
    ]


# --- convolutions ---------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """Each filter has mean 0 and variance 1, as in NFNet and the nf_regnets."""

    def forward(self, x):
        flat = self.weight.flatten(1)
        mean, std = flat.mean(1), flat.std(1)
        weight = (self.weight - mean[:, None, None, None]) / (std[:, None, None, None] + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Two(nn.Module):
    """A stream of eight channels, what is made of it, and a head."""

    def __init__(self, *layers: nn.Module, out: int = 8) -> None:
        super().__init__()
        self.stem, self.layers, self.head = nn.Conv2d(3, 8, 1), nn.ModuleList(layers), nn.Linear(out, 2)

    def forward(self, x):
        x = F.silu(self.stem(x))
        return self.head(torch.cat([F.silu(layer(x)) for layer in self.layers], 1).mean((2, 3)))


def test_weight_standardisation_over_a_grouped_convolution():
    groups = proved(Two(Standardised(8, 8, 3, padding=1, groups=2)), IMAGE)
    assert not not_followed(groups)
    blocks = [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]
    assert moved_by(groups, "stem.weight") == [[[0, 1, 2, 3], [4, 5, 6, 7]], *blocks]
    assert moved_by(groups, "head.weight", 1) == [[[0, 1, 2, 3], [4, 5, 6, 7]], *blocks]


def test_two_grouped_convolutions_of_one_stream_share_their_blocks():
    groups = proved(Two(nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(8, 4, 1, groups=2)), IMAGE)
    (whole,) = [group for group in groups.free if group.slots[0].index.shape[1] > 1]
    where = {(slot.key, slot.axis): slot.index.tolist() for slot in whole.slots}
    assert where["stem.weight", 0] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert where["layers.0.weight", 0] == where["layers.1.weight", 0] == [[0, 1], [2, 3]]
    assert where["head.weight", 1] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_blocks_of_two_divisions_that_do_not_fit():
    """Two and four blocks: halves of the halves. Nothing exchanges quarters of different halves."""
    groups = proved(Two(nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(8, 4, 1, groups=4)), IMAGE)
    assert moved_by(groups, "stem.weight") == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[0, 1], [2, 3]],
        [[0], [1]],
        [[2], [3]],
        [[4, 5], [6, 7]],
        [[4], [5]],
        [[6], [7]],
    ]


class DividedBySpread(nn.Module):
    """Each channel divided by the standard deviation over its block, as in EvoNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x)
        spread = x.reshape(len(x), 2, 3, *x.shape[2:]).var((2, 3, 4), keepdim=True).add(1e-5).sqrt()
        x = x * torch.sigmoid(x) / spread.expand(len(x), 2, 3, *x.shape[2:]).reshape(x.shape)
        return self.head(x.mean((2, 3)))


def test_a_statistic_of_a_block_ties_the_block_only():
    groups = proved(DividedBySpread(), IMAGE)
    assert moved_by(groups, "stem.weight") == [[[0, 1, 2], [3, 4, 5]], [[0], [1], [2]], [[3], [4], [5]]]


class Halves(nn.Module):
    """The outputs of a transposed convolution with two blocks, tied across the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.head = nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 1, groups=2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(F.glu(self.up(F.silu(self.stem(x))), 1).mean((2, 3)))


def test_blocks_with_a_channel_in_common_stay():
    groups = proved(Halves(), IMAGE)
    assert not not_followed(groups)
    assert moved_by(groups, "stem.weight") == [[[0], [1], [2]], [[3], [4], [5]]]
    assert [sorted(row) for index in moved_by(groups, "up.bias") for row in index] == [[0, 2], [1, 3]]


class Nested(nn.Module):
    """Blocks within blocks: the filters of each channel that a block of a grouped convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.multiplied, self.head = nn.Conv2d(4, 8, 1, groups=4), nn.Linear(8, 2)

    def forward(self, x):
        x = F.silu(self.grouped(F.silu(self.stem(x))))
        return self.head(F.silu(self.multiplied(x)).mean((2, 3)))


def test_blocks_move_the_blocks_within_them():
    groups = proved(Nested(), IMAGE)
    moved = moved_by(groups, "head.weight", 1)
    assert [[0, 1, 2, 3], [4, 5, 6, 7]] in [[sorted(row) for row in index] for index in moved]
    assert [[0, 1], [2, 3]] in moved
    assert [[6], [7]] in moved


class Singled(nn.Module):
    """One channel of three goes its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 3, 1), nn.Linear(2, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x[:, :1] * torch.sigmoid(x[:, 1:])).mean((2, 3)))


def test_a_channel_that_a_slice_singles_out_stays():
    groups = proved(Singled(), IMAGE)
    assert moved_by(groups, "stem.weight") == [[[1], [2]]]
    assert not not_followed(groups)


class TwoSingles(nn.Module):
    """Both channels go their own way: nothing may move."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 2, 1), nn.Linear(1, 2)

    def forward(self, x):
        return self.head(F.glu(self.stem(x), 1).mean((2, 3)))


def test_two_channels_singled_out_stay():
    groups = proved(TwoSingles(), IMAGE)
    assert groups.fixed_tensors["stem.bias"] == SINGLE
    assert not groups.free


class Interleaved(nn.Module):
    """Each channel stands at two places, in an order that differs from channel to channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(12, 2)

    def forward(self, x):
        x = F.silu(self.stem(x))
        x = torch.cat([x.sigmoid(), x], 1)
        return self.head(x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2).mean((2, 3)))


def test_a_tensor_beside_a_function_of_itself():
    (index,) = moved_by(proved(Interleaved(), IMAGE), "head.weight", 1)
    places = torch.arange(12).reshape(3, 4).T.flatten().argsort()
    functions, plain = places[:6].tolist(), places[6:].tolist()
    assert sorted(map(set, index), key=min) == sorted(({a, b} for a, b in zip(functions, plain, strict=True)), key=min)
    columns = [set(column) for column in zip(*index, strict=True)]
    assert columns in ([set(functions), set(plain)], [set(plain), set(functions)])


# --- attention ------------------------------------------------------------------------------------


class MultiQuery(nn.Module):
    """Attention of many query heads over one key and one value, as in MobileNetV4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.query, self.key, self.value = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 3, 1)
        self.out, self.head = nn.Conv2d(9, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = F.silu(self.stem(x))
        query = self.query(x).reshape(len(x), 3, 2, -1).transpose(-1, -2)  # heads, pixels, channels
        key, value = (layer(x).flatten(2).transpose(-1, -2)[:, None] for layer in (self.key, self.value))
        mixed = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        mixed = mixed.transpose(-1, -2).reshape(len(x), 9, *x.shape[2:])
        return self.head((x + self.out(mixed)).mean((2, 3)))


def test_multi_query_attention():
    """Heads may be exchanged, and so may the channels of the one key and of the one value."""
    groups = proved(MultiQuery(), IMAGE)
    assert not not_followed(groups)
    by_head, by_channel = [[0, 1], [2, 3], [4, 5]], [[0, 2, 4], [1, 3, 5]]
    assert sorted(moved_by(groups, "query.weight")) == sorted([by_head, by_channel])
    assert moved_by(groups, "key.weight") == [[[0], [1]]]
    assert moved_by(groups, "value.weight") == [[[0], [1], [2]]]
    by_head, by_channel = [[0, 1, 2], [3, 4, 5], [6, 7, 8]], [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert sorted(moved_by(groups, "out.weight", 1)) == sorted([by_head, by_channel])
    # Where heads and channels cross, neither can be watched before the other is matched.
    watched = {group.name: {(tap.module, tap.side) for tap in group.taps} for group in groups.free}
    assert watched["query#1"] | watched["query#2"] == {("key", "output")}


class Rotary(nn.Module):
    """Attention whose queries and keys are turned by an angle for each token and pair of channels."""

    def __init__(self, form: str, persistent: bool = False) -> None:
        super().__init__()
        self.form = form
        self.joint, self.out, self.head = nn.Linear(6, 24), nn.Linear(8, 6), nn.Linear(6, 2)
        angles = torch.outer(torch.arange(5.0) + 1, torch.tensor([1.0, 0.3]))
        if form == "complex":
            self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles), persistent)
        else:
            self.register_buffer("cos", angles.cos().repeat_interleave(2, -1), persistent)
            self.register_buffer("sin", angles.sin().repeat_interleave(2, -1), persistent)

    def turned(self, x: Tensor) -> Tensor:
        if self.form == "complex":
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * self.turn).flatten(-2)
        other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * self.cos + other * self.sin

    def forward(self, x):
        query, key, value = self.joint(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        scores = self.turned(query) @ self.turned(key).transpose(-1, -2)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.head(F.silu(self.out(mixed)).mean(1))


@pytest.mark.parametrize("form", ["real", "complex"])
def test_rotary_positions_fix_the_pairs_and_leave_the_heads(form):
    groups = proved(Rotary(form), TOKENS)
    moved = moved_by(groups, "joint.weight")
    assert [[0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19], [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]] in [
        [sorted(row) for row in index] for index in moved
    ]
    assert [[16], [17], [18], [19]] in moved
    assert [[20], [21], [22], [23]] in moved
    assert len(moved) == 3
    assert set(groups.fixed.values()) <= {TOUCHES_INPUT, TOUCHES_OUTPUT, CONSTANT, PARTS}


# --- constants ------------------------------------------------------------------------------------


class WithConstant(nn.Module):
    """Channels multiplied by a buffer that is not in the state dict."""

    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("constant", constant, persistent=False)

    def forward(self, x):
        return self.last(F.silu(self.second(F.silu(self.first(x) * self.constant)))).mean(1)


@pytest.mark.parametrize(
    ("constant", "free"),
    [
        (torch.full((4,), 0.5), ["first", "second"]),
        (torch.full((5, 4), 0.5), ["first", "second"]),
        (torch.arange(5.0)[:, None].expand(5, 4) + 1, ["first", "second"]),
        (torch.arange(4.0) + 1, ["second"]),
        (torch.arange(20.0).reshape(5, 4) + 1, ["second"]),
    ],
    ids=["one value", "one value, two axes", "along tokens", "along channels", "along both"],
)
def test_buffers_outside_of_the_state_dict_pin_what_they_differ_along(constant, free):
    groups = proved(WithConstant(constant), TOKENS)
    assert [group.name for group in groups.free] == free
    assert (CONSTANT in groups.fixed.values()) == ("first" not in free)


class Spread(nn.Module):
    """One channel, spread over four by a constant that differs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 1), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        constant = torch.arange(4.0).to(x) + 1
        return self.last(F.silu(self.second(F.silu(self.first(x) * constant)))).mean(1)


def test_an_axis_that_a_constant_spreads_is_pinned():
    groups = proved(Spread(), TOKENS)
    assert [group.name for group in groups.free] == ["second"]
    assert groups.fixed["second (input)"] == CONSTANT


# --- the proof ------------------------------------------------------------------------------------


def test_permutations_are_never_the_identity():
    network = nn.Sequential(nn.Linear(6, 2), nn.SiLU(), nn.Linear(2, 2), nn.SiLU(), nn.Linear(2, 3))
    groups = find_groups(network, TOKENS[:, 0])
    assert groups.count == 2
    for seed in range(50):
        for permutation in random_permutations(groups, seed).values():
            assert sorted(permutation.tolist()) == [0, 1]
            assert permutation.tolist() != [0, 1]


class Scaled(nn.Module):
    """A residual branch at the end of which stands a scale that begins at next to nothing."""

    def __init__(self, scale: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.inner, self.outer = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1, bias=False)
        self.scale, self.gamma = nn.Identity(), 1.0
        if scale == "layer scale":
            self.gamma = nn.Parameter(torch.full((6, 1, 1), 1e-6))
        elif scale == "batch norm":
            self.scale = nn.BatchNorm2d(6)
            nn.init.zeros_(self.scale.weight)
        else:
            self.scale = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
            nn.init.normal_(self.scale.weight, std=1e-7)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = F.silu(self.stem(x))
        x = x + self.scale(self.outer(F.silu(self.inner(x)))) * self.gamma
        return self.head(F.silu(x).mean((2, 3)))


@pytest.mark.parametrize("scale", ["layer scale", "batch norm", "depthwise"])
def test_small_scales_hide_no_wrong_group(scale):
    network = Scaled(scale)
    groups = proved(network, IMAGE)
    assert [group.size for group in groups.free] == [6, 5]
    inner = groups["inner"]
    for place in range(len(inner.slots)):
        wrong = replace(inner, slots=inner.slots[:place] + inner.slots[place + 1 :])
        others = tuple(wrong if group is inner else group for group in groups)
        result = prove_groups(network, replace(groups, groups=others), IMAGE)
        assert result.fixed["inner"].startswith("not proved: permuting it changes the output"), inner.slots[place].key
        assert "stem" not in result.fixed


class Centred(nn.Module):
    """What the first layer gives is taken away again by a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.vain, self.norm = nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)
        self.used, self.head = nn.Conv2d(3, 5, 1), nn.Linear(9, 2)

    def forward(self, x):
        return self.head(torch.cat([self.norm(self.vain(x)), F.silu(self.used(x))], 1).mean((2, 3)))


def test_a_group_without_effect_is_fixed_with_its_reason():
    network = Centred()
    groups = prove_groups(network, find_groups(network, IMAGE), IMAGE)
    assert groups.fixed["vain"] == NO_EFFECT
    assert [group.name for group in groups.free] == ["used"]


def test_a_network_whose_groups_have_no_effect_at_all_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1))
    with pytest.raises(GroupError, match="hardly depends on its channels"):
        prove_groups(network, find_groups(network, IMAGE), IMAGE)


def test_channels_that_begin_silent_are_proved():
    network = nn.Sequential(nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    nn.init.constant_(network[2].bias, -20.0)
    groups = proved(network, TOKENS[:, 0])
    assert [group.name for group in groups.free] == ["0", "2"]


# --- a bilinear form ------------------------------------------------------------------------------


class OfTwo(nn.Module):
    """A bilinear form of two hidden layers, of one with itself, or of one and the input."""

    def __init__(self, of: str) -> None:
        super().__init__()
        sizes = {"two": (4, 5), "itself": (4, 4), "the input": (4, 6)}[of]
        self.of, self.a, self.b = of, nn.Linear(6, 4), nn.Linear(6, 5)
        self.both, self.head = nn.Bilinear(*sizes, 7), nn.Linear(7, 3)

    def forward(self, x):
        a = F.silu(self.a(x))
        other = F.silu(self.b(x)) if self.of == "two" else a if self.of == "itself" else x
        return self.head(F.silu(self.both(a, other)))


@pytest.mark.parametrize("of", ["two", "itself", "the input"])
@pytest.mark.parametrize("example", [TOKENS, TOKENS[:, 0]], ids=["tokens", "rows"])
def test_a_bilinear_form_moves_with_each_of_its_inputs(of, example):
    groups = proved(OfTwo(of), example)
    assert not not_followed(groups)
    first, produced = [[0], [1], [2], [3]], [[number] for number in range(7)]
    second = {"two": [[[number] for number in range(5)]], "itself": [first], "the input": []}[of]
    assert moved_by(groups, "both.weight", 1) == [first]
    assert moved_by(groups, "both.weight", 2) == second
    assert moved_by(groups, "both.weight") == moved_by(groups, "head.weight", 1) == [produced]


@pytest.mark.parametrize("criterion", ["weights", "activations"])
def test_networks_that_are_one_bilinear_form_in_other_orders_are_matched(criterion):
    torch.manual_seed(0)
    network, inputs = OfTwo("two").eval(), torch.randn(200, 6)
    groups = proved(network, inputs[:2])
    other, state = copy.deepcopy(network), network.state_dict()
    for name, order in random_permutations(groups, 5).items():
        state = groups[name].permute(state, order)
    other.load_state_dict(state)
    assert not torch.equal(other.both.weight, network.both.weight)
    child = fuse([network, other], {"criterion": criterion, "refit": "none", "task": "features"}, inputs).child
    torch.testing.assert_close(child(inputs), network(inputs))
