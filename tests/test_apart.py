"""Merging in part: room for more channels, pairs kept side by side, and children that are their parents' ensemble."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import Coupling
from depfuse.apart import keep_apart
from depfuse.checkpoint import Card, load_into, read_checkpoint, write_checkpoint
from depfuse.cli.app import main
from depfuse.data import Loader, Preprocessing, Split
from depfuse.errors import ArchitectureError, CheckpointError, RecipeError
from depfuse.groups.stages import stages_of
from depfuse.groups.widening import find_hosts, make_room
from depfuse.models import build_network
from depfuse.renorm import reset_batch_norm
from depfuse.resizing import resize
from depfuse.widths import shapes_of


def images(channels: int = 1, side: int = 8, count: int = 60) -> Loader:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=30)


def network(name: str, seed: int, loader: Loader) -> nn.Module:
    torch.manual_seed(seed)
    model = Flattened() if name == "flattened" else build_network(name)
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


# Padded and projected shortcuts, concatenations, a flatten behind many positions, depthwise convolutions with gates.
NETWORKS = {
    "digits_resnet(width=0.5)": (1, 8),
    'cifar_resnet20(shortcut="A")': (3, 16),
    "vgg11(batch_norm=False, width=0.125)": (3, 32),
    "flattened": (1, 8),
    "torchvision:mobilenet_v3_small": (3, 32),
    "torchvision:densenet121": (3, 32),
}
SLOW = ("torchvision:mobilenet_v3_small", "torchvision:densenet121")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS]
)
def test_parents_keep_their_function_and_a_child_with_all_apart_is_the_ensemble(name):
    loader = images(*NETWORKS[name], count=6)
    parents = [network(name, seed, loader).double() for seed in (0, 1)]
    batch = next(iter(loader))[0].double()
    groups = prove_groups(parents[0], find_groups(parents[0], batch[:1]), batch[:1])
    whole = fuse(
        parents, Recipe(refit="none", criterion="weights", restarts=1, renorm="none", keep_worst=1.0), example=batch[:1]
    )
    assert whole.apart is not None
    assert not whole.apart.merged
    assert whole.apart.kept == {group.name: group.size for group in groups.free}
    with torch.no_grad():
        expected = [parent(batch) for parent in parents]
        for found in (whole.apart.models, whole.apart.unmatched):
            for wider, outputs in zip(found, expected, strict=True):
                torch.testing.assert_close(wider(batch), outputs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(whole.child(batch), sum(expected) / 2, rtol=1e-9, atol=1e-9)


def test_statistics_before_anything_is_merged_are_the_parents():
    """Other images than those of the parents' statistics change only what merged channels go into."""
    name = 'cifar_resnet20(shortcut="B")'
    parents = [network(name, seed, images(3, 16)) for seed in (0, 1)]
    others = images(3, 16, 90)
    batch = next(iter(others))[0]
    whole = fuse(parents, Recipe(refit="none", keep_worst=1.0), others)
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
    merged = fuse(parents, Recipe(refit="none", keep_worst=0.5), others)
    assert merged.apart is not None
    assert merged.apart.settled == ()


def test_three_parents_with_shares():
    loader = images(3, 16)
    parents = [network('cifar_resnet20(shortcut="A")', seed, loader).double() for seed in range(3)]
    batch = next(iter(loader))[0].double()
    recipe = Recipe(
        refit="none", criterion="weights", restarts=1, renorm="none", keep_worst=1.0, weights=(0.5, 0.3, 0.2)
    )
    result = fuse(parents, recipe, example=batch[:1])
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
    child = fuse(parents, recipe, example=batch[:1], labels=labels, template=template).child
    with torch.no_grad():
        outputs = child(batch)
        for parent, own in zip(parents, labels, strict=True):
            torch.testing.assert_close(outputs[:, own], parent(batch), rtol=1e-9, atol=1e-9)


def test_a_perceptron_by_hand():
    parents = [Perceptron(seed).double().eval() for seed in (0, 1)]
    loader = images()
    groups = prove_groups(parents[0], find_groups(parents[0], torch.zeros(1, 1, 8, 8)), torch.zeros(1, 1, 8, 8))
    recipe = Recipe(refit="none", criterion="weights", renorm="none", keep_worst=0.5, restarts=1)
    result = fuse(parents, recipe, None, example=torch.zeros(1, 1, 8, 8))
    (group,) = groups.free
    order = fuse(parents, recipe.changed(keep_worst=0.0), None, example=torch.zeros(1, 1, 8, 8))
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
    assert kept == ({} if result.apart is None else result.apart.kept)
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
            fuse(parents, Recipe(refit="none", criterion="weights", keep_worst=0.5), example=example)


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
        ({"keep_worst": 0.2, "solver": "sinkhorn"}, "choose emd"),
        ({"keep_last": 9}, "--keep-last 9 is more than the"),
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
    common = ["--calibration", "100", "--quiet", "--refit", "none"]
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
    apart = keep_apart(parents, groups, identity, Recipe(keep_worst=1.0), example, None)
    assert [shapes_of(parent) for parent in parents] == before
    assert apart.groups.free_channels == 8
