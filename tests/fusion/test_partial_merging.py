"""Merging in part: room for more channels, pairs kept side by side, and children that are their parents' ensemble."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import Coupling
from depfuse.cli.app import main
from depfuse.data import Loader, Preprocessing, Split
from depfuse.errors import ArchitectureError, CheckpointError, DepfuseWarning, GroupError, RecipeError
from depfuse.fusion.arrangement import Arrangement
from depfuse.fusion.parents import Parents
from depfuse.fusion.partial_merging import merge_partially
from depfuse.fusion.separation import SeparationProof
from depfuse.fusion.widths import shapes_of
from depfuse.groups.channel_group import random_permutations
from depfuse.groups.widening import find_hosts, make_room
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, write_checkpoint
from depfuse.io.into_network import load_into
from depfuse.merge import AlignedParents
from depfuse.models import build_network
from depfuse.networks.resizing import resize
from depfuse.networks.stages import stages_of
from depfuse.recipe.sections import Merge
from depfuse.renorm import reset_batch_norm


def images(channels: int = 1, side: int = 8, count: int = 60) -> Loader:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=30)


def network(name: str, seed: int, loader: Loader) -> nn.Module:
    torch.manual_seed(seed)
    model = OWN[name]() if name in OWN else build_network(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    reset_batch_norm(model, loader)
    return model.eval()


class Perceptron(nn.Module):
    """One hidden layer; its number of channels may be written into the forward pass, or normed over."""

    def __init__(self, seed: int = 0, hidden: int = 4, written: bool = False, normed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(64, hidden), nn.Linear(hidden, 10)
        self.norm = nn.LayerNorm(hidden) if normed else nn.Identity()
        self.shape = (-1, hidden) if written else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x.flatten(1))))
        return self.last(x if self.shape is None else x.reshape(self.shape))


class Flattened(nn.Module):
    """A flatten behind several positions, and a layer without BatchNorm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 5, 2), nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.relu(self.second(F.relu(self.norm(self.first(x))))).flatten(1))


OWN = {"flattened": Flattened, "dense": lambda: torchvision.models.DenseNet(8, (3, 3), 16, num_classes=10)}
# Padded and projected shortcuts, concatenations, a flatten behind many positions, depthwise convolutions with gates.
NETWORKS = {
    "digits_resnet(width=0.5)": (1, 8),
    'cifar_resnet20(shortcut="A")': (3, 16),
    "vgg11(batch_norm=False, width=0.125)": (3, 32),
    "flattened": (1, 8),
    "torchvision:mobilenet_v3_small": (3, 32),
    "dense": (3, 32),
}
SLOW = ("torchvision:mobilenet_v3_small",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS]
)
def test_parents_keep_their_function_and_a_child_with_all_apart_is_the_ensemble(name):
    loader = images(*NETWORKS[name], count=6)
    parents = [network(name, seed, loader).double() for seed in (0, 1)]
    batch = next(iter(loader))[0].double()
    groups = prove_groups(parents[0], find_groups(parents[0], batch[:1]), batch[:1])
    whole = fuse(
        Parents(parents, example=batch[:1]),
        Recipe(refit="none", criterion="weights", restarts=1, renorm="none", keep_worst=1.0),
    )
    assert whole.partial_merge is not None
    assert not whole.partial_merge.merged
    assert whole.partial_merge.unmerged == {group.name: group.size for group in groups.free}
    with torch.no_grad():
        expected = [parent(batch) for parent in parents]
        for found in (whole.partial_merge.models, whole.partial_merge.unmatched):
            for wider, outputs in zip(found, expected, strict=True):
                torch.testing.assert_close(wider(batch), outputs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(whole.child(batch), sum(expected) / 2, rtol=1e-9, atol=1e-9)


def test_statistics_before_anything_is_merged_are_the_parents():
    """Other images than those of the parents' statistics change only what merged channels go into."""
    name = 'cifar_resnet20(shortcut="B", width=0.5)'
    parents = [network(name, seed, images(3, 16)) for seed in (0, 1)]
    others = images(3, 16, 90)
    batch = next(iter(others))[0]
    whole = fuse(parents, Recipe(refit="none", keep_worst=1.0, distance="pearson"), others)
    first = fuse(parents, Recipe(refit="none", keep_first=1, distance="pearson"), others)
    with torch.no_grad():
        torch.testing.assert_close(whole.child(batch), sum(parent(batch) for parent in parents) / 2)
    changed = {key for key in dict(first.child.named_buffers()) if "num_batches" not in key}
    plain = fuse(
        parents, Recipe(refit="none", keep_first=1, distance="pearson", renorm="none"), others
    ).child.state_dict()
    changed = {key.rpartition(".")[0] for key in changed if not torch.equal(first.child.state_dict()[key], plain[key])}
    tracked = [key for key, module in first.child.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert changed == {key for key in tracked if key.startswith(("layer2", "layer3"))}
    merged = fuse(parents, Recipe(refit="none", keep_worst=0.5, distance="pearson"), others)
    assert merged.partial_merge is not None
    assert merged.partial_merge.unaffected == ()


def test_three_parents_with_shares():
    loader = images(3, 16)
    parents = [network('cifar_resnet20(shortcut="A", width=0.5)', seed, loader).double() for seed in range(3)]
    batch = next(iter(loader))[0].double()
    recipe = Recipe(
        refit="none", criterion="weights", restarts=1, renorm="none", keep_worst=1.0, weights=(0.5, 0.3, 0.2)
    )
    result = fuse(Parents(parents, example=batch[:1]), recipe)
    with torch.no_grad():
        expected = [parent(batch) for parent in parents]
        for shares in ((0.5, 0.3, 0.2), (0.0, 1.0, 0.0)):
            mean = sum(share * outputs for share, outputs in zip(shares, expected, strict=True))
            torch.testing.assert_close(result.at(shares)(batch), mean, rtol=1e-9, atol=1e-9)


def test_parents_of_other_labels_all_apart_are_their_heads_side_by_side():
    loader = images()
    parents = [network(f"digits_resnet(width=0.5, classes={count})", count, loader).double() for count in (3, 4)]
    template = build_network("digits_resnet(width=0.5, classes=7)").double()
    recipe = Recipe(refit="none", criterion="weights", restarts=1, renorm="none", keep_worst=1.0)
    batch = next(iter(loader))[0].double()
    labels = [(0, 2, 4), (1, 3, 5, 6)]
    child = fuse(Parents(parents, example=batch[:1], labels=labels, template=template), recipe).child
    with torch.no_grad():
        outputs = child(batch)
        for parent, own in zip(parents, labels, strict=True):
            torch.testing.assert_close(outputs[:, own], parent(batch), rtol=1e-9, atol=1e-9)


def test_a_perceptron_by_hand():
    parents = [Perceptron(seed).double().eval() for seed in (0, 1)]
    loader = images()
    groups = prove_groups(parents[0], find_groups(parents[0], torch.zeros(1, 1, 8, 8)), torch.zeros(1, 1, 8, 8))
    recipe = Recipe(refit="none", criterion="weights", renorm="none", keep_worst=0.5, restarts=1)
    result = fuse(Parents(parents, example=torch.zeros(1, 1, 8, 8)), recipe, None)
    (group,) = groups.free
    order = fuse(Parents(parents, example=torch.zeros(1, 1, 8, 8)), recipe.changed(keep_worst=0.0), None)
    order = order.couplings[1][group.name].permutation
    a, b = (parent.requires_grad_(False) for parent in parents)
    squares = [
        float(
            (a.first.weight[i] - b.first.weight[j]).square().sum()
            + (a.first.bias[i] - b.first.bias[j]).square()
            + (a.last.weight[:, i] - b.last.weight[:, j]).square().sum()
        )
        for i, j in enumerate(order.tolist())
    ]
    worst = sorted(range(4), key=lambda channel: -squares[channel])[:2]
    batch = next(iter(loader))[0].double()
    expected = 0.5 * (a.last.bias + b.last.bias).expand(len(batch), -1)
    for i, j in enumerate(order.tolist()):
        x, y = (batch.flatten(1) @ m.first.weight[c] + m.first.bias[c] for m, c in ((a, i), (b, j)))
        out_a, out_b = 0.5 * a.last.weight[:, i], 0.5 * b.last.weight[:, j]
        if i in worst:
            expected = expected + x.relu()[:, None] * out_a + y.relu()[:, None] * out_b
        else:
            expected = expected + (0.5 * (x + y)).relu()[:, None] * (out_a + out_b)
    with torch.no_grad():
        torch.testing.assert_close(result.child(batch), expected)
    assert result.child.first.out_features == result.child.last.in_features == 6


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_a_share_of_every_group_is_kept(share):
    loader = images()
    parents = [network("digits_resnet(width=0.5)", seed, loader) for seed in (0, 1)]
    result = fuse(parents, Recipe(refit="none", keep_worst=share), loader)
    plain = fuse(parents, Recipe(refit="none"), loader)
    kept = {g.name: round(share * g.size) for g in plain.groups.free if round(share * g.size)}
    assert kept == ({} if result.partial_merge is None else result.partial_merge.unmerged)
    assert {g.name: g.size for g in result.groups.free} == {
        g.name: g.size + kept.get(g.name, 0) for g in plain.groups.free
    }


def test_padded_shortcuts_find_room_in_the_stream():
    example = torch.zeros(1, 3, 16, 16)
    model = build_network('cifar_resnet20(shortcut="A")').eval()
    groups = prove_groups(model, find_groups(model, example), example)
    found, why = find_hosts(model, groups, example)
    assert not why
    assert found.keys() == {group.name for group in groups.free}
    guests = {name for name, host in found.items() if name != host}
    assert {groups[name].size for name in guests} == {16, 32}
    assert len({found[name] for name in guests}) == 1


def test_what_has_no_room_is_merged_and_named():
    example = torch.zeros(1, 1, 8, 8)
    for settings in ({"written": True}, {"normed": True}):
        parents = [Perceptron(seed, **settings).eval() for seed in (0, 1)]
        with pytest.raises(RecipeError, match="no room"):
            fuse(Parents(parents, example=example), Recipe(refit="none", criterion="weights", keep_worst=0.5))


class Middle(nn.Module):
    """A convolution with BatchNorm, something in the middle, and a second convolution: (N, 1, 8, 8) to (N, 3)."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        function, layer, width = MIDDLES[name]
        self.first, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.layer, self.middle = layer() if layer else nn.Identity(), function
        self.second, self.last = nn.Conv2d(width, 6, 3), nn.Linear(6, 3)
        for tensor in (self.norm.weight, self.norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.layer, F.relu(self.norm(self.first(x))))
        return self.last(F.relu(self.second(x)).mean((2, 3)))


def gated_thirds(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
    first, second, third = x.chunk(3, 1)
    return torch.cat([second, first * third.sigmoid(), third], 1)


def attention(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return (tokens + layer(tokens, tokens, tokens)[0]).transpose(1, 2).reshape(x.shape)


def shuffle(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)


def weight_normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 12, 3, padding=1))


def weight_normed_by_a_hook() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Conv2d(12, 12, 3, padding=1))


class Halved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def weight_normed_and_halved() -> nn.Module:
    layer = weight_normed()
    nn.utils.parametrize.register_parametrization(layer, "weight", Halved())
    return layer


ORDER = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 11, 10])
# Name -> what is done in the middle, its layer, and how many channels come out.
EXACT = {
    "chunks": (gated_thirds, None, 12),
    "gated linear unit": (lambda _, x: F.glu(x, 1), None, 6),
    "x beside itself": (lambda _, x: torch.cat([x, x.roll(1, 2)], 1), None, 24),
    "squeeze": (lambda layer, x: x * layer(x.mean((2, 3)))[..., None, None].sigmoid(), lambda: nn.Linear(12, 12), 12),
    "instance norm": (lambda layer, x: layer(x), lambda: nn.InstanceNorm2d(12, affine=True), 12),
    "depthwise": (lambda layer, x: layer(x).relu(), lambda: nn.Conv2d(12, 12, 3, padding=1, groups=12), 12),
    "weight norm": (lambda layer, x: layer(x).relu(), weight_normed, 12),
    "weight norm and another": (lambda layer, x: layer(x).relu(), weight_normed_and_halved, 12),
    "hooked weight norm": (lambda layer, x: layer(x).relu(), weight_normed_by_a_hook, 12),
    "slopes": (lambda layer, x: layer(x - 0.5), lambda: nn.PReLU(12), 12),
}
REFUSED = {
    "uneven split": (lambda _, x: torch.cat(x.split([2, 4, 6], 1)[::-1], 1), None, 12, "first"),
    "roll": (lambda _, x: x + x.roll(3, 1), None, 12, "between norm"),
    "flip": (lambda _, x: x + 0.5 * x.flip(1), None, 12, "first"),
    "maxout": (lambda _, x: x.unflatten(1, (6, 2)).amax(2), None, 6, "blocks"),
    "softmax": (lambda _, x: 12 * x.softmax(1), None, 12, "between norm and second"),
    "largest": (lambda _, x: x * x.amax(1, True), None, 12, "between norm and second"),
    "top-k": (lambda _, x: x * (x >= x.topk(4, 1).values[:, -1:]), None, 12, "between norm and second"),
    "argmax": (lambda _, x: x * F.one_hot(x.argmax(1), x.shape[1]).movedim(-1, 1), None, 12, "chosen by an index"),
    "sort": (lambda _, x: x.sort(1).values, None, 12, "no other number of channels"),
    "gather": (lambda _, x: x.gather(1, ORDER[None, :, None, None].expand_as(x)), None, 12, "chosen by an index"),
    "length": (lambda _, x: F.normalize(x, dim=1), None, 12, "between norm and second"),
    "neighbours": (lambda _, x: F.local_response_norm(x, 3), None, 12, "neighbouring"),
    "shuffle": (shuffle, None, 12, "first"),
    "products": (
        lambda _, x: torch.einsum("nchw,ndhw->ncd", x, x).flatten(1)[..., None, None].expand(-1, -1, 4, 4),
        None,
        144,
        "first",
    ),
    "layer norm": (lambda layer, x: layer(x.movedim(1, -1)).movedim(-1, 1), lambda: nn.LayerNorm(12), 12, "LayerNorm"),
    "group norm": (lambda layer, x: layer(x), lambda: nn.GroupNorm(3, 12), 12, "blocks"),
    "one group": (lambda layer, x: layer(x), lambda: nn.GroupNorm(1, 12), 12, r"GroupNorm \(layer\)"),
    "attention": (attention, lambda: nn.MultiheadAttention(12, 3, batch_first=True), 12, "MultiheadAttention"),
    "groups": (lambda layer, x: layer(x), lambda: nn.ConvTranspose2d(12, 24, 2, stride=2, groups=3), 24, "blocks"),
    "one slope": (lambda layer, x: layer(x - 0.5), nn.PReLU, 12, "single channel"),
    "one gate": (lambda layer, x: x * layer(x).sigmoid(), lambda: nn.Conv2d(12, 1, 1), 12, "single channel"),
    "last channel": (lambda _, x: x * x[:, -1:].sigmoid(), None, 12, "in no group"),
}
MIDDLES = EXACT | {name: (*parts, width) for name, (*parts, width, _) in REFUSED.items()}
BY_WEIGHTS = Recipe(criterion="weights", restarts=1, refit="none", renorm="none", keep_worst=1.0)


@pytest.mark.parametrize("name", EXACT)
def test_what_treats_channels_by_themselves_gives_the_ensemble(name):
    parents = [Middle(name, seed).eval() for seed in (0, 1, 2)]
    batch = torch.randn(4, 1, 8, 8)
    recipe = BY_WEIGHTS.changed(weights=(0.5, 0.3, 0.2))
    child = fuse(Parents(parents, example=batch[:1]), recipe).child
    with torch.no_grad():
        mean = sum(share * parent(batch) for share, parent in zip((0.5, 0.3, 0.2), parents, strict=True))
        torch.testing.assert_close(child(batch), mean, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:a part of")
@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_channels_is_refused_by_name(name):
    parents = [Middle(name, seed).eval() for seed in (0, 1)]
    with pytest.raises(GroupError, match=f"would not be the ensemble.*{REFUSED[name][-1]}"):
        fuse(Parents(parents, example=torch.randn(1, 1, 8, 8)), BY_WEIGHTS)


class Normalising(nn.Module):
    """A perceptron of images that it normalises itself, by buffers."""

    def __init__(self, seed: int, mean: float) -> None:
        super().__init__()
        self.body = Perceptron(seed)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body((x - self.mean) / self.std)


def test_equal_buffers_that_normalise_the_input_leave_all_channels_apart():
    """The mean of equal ones is what both have; where one of them differs, the child is not the ensemble."""
    batch = torch.randn(4, 1, 8, 8)
    parents = [Normalising(seed, 0.2).eval() for seed in (0, 1, 2)]
    child = fuse(Parents(parents, example=batch[:1]), BY_WEIGHTS).child
    with torch.no_grad():
        torch.testing.assert_close(child(batch), sum(parent(batch) for parent in parents) / 3, rtol=1e-5, atol=1e-5)
    parents[2] = Normalising(2, 0.4).eval()
    with pytest.raises(GroupError, match=r"would not be the ensemble.*mean"):
        fuse(Parents(parents, example=batch[:1]), BY_WEIGHTS)


def test_what_is_not_linear_in_the_logits_is_refused():
    parents = [nn.Sequential(Perceptron(seed), nn.Softmax(1)).eval() for seed in (0, 1)]
    with pytest.raises(GroupError, match="the output"):
        fuse(Parents(parents, example=torch.randn(1, 1, 8, 8)), BY_WEIGHTS)


@pytest.mark.parametrize("name", ["softmax", "layer norm", "attention", "groups"])
def test_what_mixes_channels_is_merged_with_a_warning_where_a_part_is_kept(name):
    parents = [Middle(name, seed).eval() for seed in (0, 1)]
    recipe = BY_WEIGHTS.changed(keep_worst=0.5)
    with pytest.warns(DepfuseWarning, match=f"kept apart are merged: first.*{REFUSED[name][-1]}"):
        result = fuse(Parents(parents, example=torch.randn(1, 1, 8, 8)), recipe)
    assert result.partial_merge is not None
    assert result.partial_merge.unmerged == {"second": 3}
    assert any(group.startswith("first") for group in result.partial_merge.merged)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore:channels that were")
def test_a_child_of_permuted_copies_with_some_channels_apart_is_the_parent(name):
    parent = Middle(name, 0).eval()
    batch = torch.randn(4, 1, 8, 8)
    groups = prove_groups(parent, find_groups(parent, batch), batch)
    state = parent.state_dict()
    for group, permutation in random_permutations(groups, 3).items():
        state = groups[group].permute(state, permutation)
    other = Middle(name, 0).eval()
    other.load_state_dict(state)
    child = fuse(Parents([parent, other], example=batch[:1]), BY_WEIGHTS.changed(keep_worst=0.5)).child
    with torch.no_grad():
        torch.testing.assert_close(child(batch), parent(batch), rtol=1e-5, atol=1e-5)


def test_an_arrangement_that_exchanges_channels_fails_its_proof():
    parents = [Middle("gated linear unit", seed).eval() for seed in (0, 1)]
    example = torch.randn(1, 1, 8, 8)
    groups = prove_groups(parents[0], find_groups(parents[0], example), example)
    hosts, _ = find_hosts(parents[0], groups, example)
    kept = {group.name: torch.arange(group.size) for group in groups.free}
    proof = SeparationProof(parents, example, None, None, (0.5, 0.5), seed=0)
    for some in (kept, {"first": kept["first"][:3]}):
        right = Arrangement.create(groups, hosts, some, 2, parents[0].state_dict())
        whole = some is kept
        assert proof.fault(right, whole=whole) is None
        source = right.sources[1]["first.bias", 0].clone()
        new = (right.owners["first.bias", 0] == 1).nonzero().flatten()
        source[new] = source[new.roll(1)]
        sources = (right.sources[0], {**right.sources[1], ("first.bias", 0): source})
        fault = proof.fault(replace(right, sources=sources), whole=whole)
        assert fault is not None
        assert fault.error > 1e-6


def test_nothing_is_settled_behind_a_single_channel_that_is_merged():
    class Narrow(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.one, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
            self.first, self.second, self.last = nn.Conv2d(1, 6, 3, 2), nn.Conv2d(6, 6, 1), nn.Linear(6, 3)
            self.stem = nn.Conv2d(1, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(F.relu(self.norm(self.one(x))))
            return self.last(F.relu(self.second(F.relu(x))).mean((2, 3)))

    parents = [Narrow(seed).eval() for seed in (0, 1)]
    recipe = Recipe(criterion="weights", restarts=1, refit="none", renorm="none", keep_last=1)
    result = fuse(Parents(parents, example=torch.randn(1, 1, 8, 8)), recipe)
    assert result.partial_merge is not None
    assert set(result.partial_merge.unmerged) == {"first", "second"}
    assert result.partial_merge.unaffected == ()


def test_new_channels_follow_the_last_of_their_group():
    model = Perceptron()
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    (group,) = groups.free
    room = make_room(groups, {group.name: 2}, model.state_dict())
    assert room.source["last.weight", 1].tolist() == [0, 1, 2, 3, -1, -1]
    assert room.shapes(model.state_dict())["first.weight"] == (6, 64)
    with pytest.raises(ArchitectureError, match=r"no first\.wait"):
        resize(model, {"first.wait": torch.Size([6, 64])})


def test_stages_are_resolutions():
    model = build_network('cifar_resnet20(shortcut="A")')
    stages, count = stages_of(model, torch.zeros(1, 3, 32, 32))
    assert count == 3
    assert (stages["conv1"], stages["layer2.0.conv1"], stages["layer3.2.bn2"]) == (0, 1, 2)
    assert stages_of(Perceptron(), torch.zeros(1, 1, 8, 8)) == ({"first": 0, "last": 1}, 2)


def test_stages_are_kept_apart():
    loader = images(3, 32, 30)
    parents = [network("vgg11(width=0.125)", seed, loader) for seed in (0, 1)]
    sizes = {
        name: [g.size for g in fuse(parents, Recipe(refit="none", **keep), loader).groups.free]
        for name, keep in {"none": {}, "first": {"keep_first": 2}, "last": {"keep_last": 1}}.items()
    }
    none = sizes["none"]
    assert sizes["first"] == [2 * size if place < 2 else size for place, size in enumerate(none)]
    assert sizes["last"] == [2 * size if place >= len(none) - 2 else size for place, size in enumerate(none)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"keep_worst": 1.5}, "less than or equal to 1"),
        ({"keep_worst": -0.1}, "greater than or equal to 0"),
        ({"keep_worst": 0.2, "renorm": "repair"}, "choose reset"),
        ({"keep_worst": 0.2, "solver": "sinkhorn", "regularisation": 5.0, "distance": "scaled"}, "choose emd"),
        ({"keep_last": 9}, "merge.keep_last 9 is more than the"),
    ],
)
def test_bad_settings_get_one_sentence(settings, sentence):
    loader = images()
    with pytest.raises(RecipeError, match=sentence):
        fuse([network("digits_resnet(width=0.5)", seed, loader) for seed in (0, 1)], Recipe.create(**settings), loader)


def test_wider_children_are_written_read_and_fused_again(tmp_path):
    paths = []
    for seed in (0, 1):
        paths.append(tmp_path / f"parent{seed}.safetensors")
        model = network("digits_resnet(width=0.5)", seed, images())
        write_checkpoint(paths[-1], model.state_dict(), Card(architecture="digits_resnet(width=0.5)", data="digits"))
    common = ["--calibration", "100", "--quiet", "--refit", "none", "--distance", "scaled"]
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert main(["fuse", *map(str, paths), "--out", str(first), "--keep-worst", "0.25", *common]) == 0
    assert main(["fuse", str(first), str(paths[0]), "--out", str(second), *common]) == 0
    checkpoint = read_checkpoint(first)
    assert checkpoint.card is not None
    assert checkpoint.card.widened
    model = build_network("digits_resnet(width=0.5)")
    load_into(model, checkpoint)
    assert shapes_of(model) == {key: tensor.shape for key, tensor in checkpoint.state.items()}
    assert main(["eval", str(second), "--quiet"]) == 0
    with pytest.raises(CheckpointError, match="does not fit"):
        load_into(build_network("digits_resnet(width=4)"), checkpoint)


AS_THEY_ARE = Recipe(refit="ridge", refit_steps=0, joint_head="none", parents_renorm="none")


def test_refit_of_a_wider_child_is_closer_to_the_parents():
    loader = images(count=200)
    parents = [network("digits_resnet(width=0.5)", seed, loader) for seed in (0, 1)]
    batch = next(iter(loader))[0]
    with torch.no_grad():
        mean = sum(parent(batch) for parent in parents) / 2
        errors = [
            float((fuse(parents, AS_THEY_ARE.changed(**keep), loader).child(batch) - mean).norm())
            for keep in ({}, {"keep_worst": 1.0})
        ]
    assert errors[1] < 0.5 * errors[0]


def test_parents_are_left_as_they_were():
    parents = [Perceptron(seed).eval() for seed in (0, 1)]
    before = [shapes_of(parent) for parent in parents]
    example = torch.zeros(1, 1, 8, 8)
    groups = prove_groups(parents[0], find_groups(parents[0], example), example)
    identity = [{group.name: Coupling.identity(group.size) for group in groups.free} for _ in parents]
    partial = merge_partially(AlignedParents(parents, groups, identity, (0.5, 0.5), example), Merge(keep_worst=1.0))
    assert [shapes_of(parent) for parent in parents] == before
    assert partial.groups.free_channels == 8
