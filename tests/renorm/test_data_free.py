"""What averaging does to signals, undone from the weights alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from digits_parents import digits_files, digits_parents
from torch import nn

from depfuse import Recipe, find_groups, fuse
from depfuse.align import Coupling
from depfuse.cli import main
from depfuse.data import Loader, load_data
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate
from depfuse.fusion.parents import Parents
from depfuse.io.checkpoint import read_checkpoint
from depfuse.merge import AlignedParents, average
from depfuse.models import build_network
from depfuse.renorm import rescale_by_norms

IMAGE = torch.zeros(1, 1, 8, 8)


def identity(groups):
    return {group.name: Coupling.identity(group.size) for group in groups.free}


def child_of(parents, shares=(0.5, 0.5), couplings=None, example=IMAGE):
    """The average without and with the correction."""
    groups = find_groups(parents[0], example)
    couplings = couplings or [identity(groups)] * len(parents)
    plain = average(parents, groups, couplings, shares)
    corrected = copy.deepcopy(plain)
    rescale_by_norms(corrected, AlignedParents(parents, groups, couplings, shares), example)
    return plain, corrected


def test_two_layers_by_hand():
    parents = [nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)) for _ in range(2)]
    rows = ([[3.0, 0.0], [1.0, 1.0]], [[0.0, 4.0], [1.0, 1.0]])
    with torch.no_grad():
        for parent, weight, last in zip(parents, rows, ([2.0, 0.0], [0.0, -2.0]), strict=True):
            parent[0].weight.copy_(torch.tensor(weight))
            parent[0].bias.copy_(torch.tensor([1.0, 2.0]))
            parent[2].weight.copy_(torch.tensor([last]))
            parent[2].bias.fill_(5.0)
    _, child = child_of(parents, example=torch.zeros(1, 2))
    # (1.5, 2) has norm 2.5 where the parents have 3 and 4; equal rows stay as they are; (1, -1) has norm sqrt 2, not 2.
    torch.testing.assert_close(child[0].weight, torch.tensor([[1.5 * 3.5 / 2.5, 2 * 3.5 / 2.5], [1.0, 1.0]]))
    torch.testing.assert_close(child[2].weight, torch.tensor([[2.0, -2.0]]) / 2**0.5)
    torch.testing.assert_close(child[0].bias, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(child[2].bias, torch.tensor([5.0]))


def test_a_batch_norm_by_hand():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm, self.head = nn.Linear(2, 1), nn.BatchNorm1d(1), nn.Linear(1, 1)

        def forward(self, x):
            return self.head(torch.relu(self.norm(self.layer(x))))

    parents = [Normed().eval() for _ in range(2)]
    with torch.no_grad():
        for parent, row, variance, mean in zip(parents, ([3.0, 0.0], [0.0, 4.0]), (4.0, 9.0), (1.0, 2.0), strict=True):
            parent.layer.weight.copy_(torch.tensor([row]))
            parent.norm.running_var.fill_(variance)
            parent.norm.running_mean.fill_(mean)
    plain, child = child_of(parents, example=torch.zeros(1, 2))
    # Orthogonal signals of deviations 2 and 3, halved and added.
    torch.testing.assert_close(child.norm.running_var, torch.tensor([(2.0**2 + 3.0**2) / 4]))
    torch.testing.assert_close(child.norm.running_mean, torch.tensor([1.5]))
    assert torch.equal(child.layer.weight, plain.layer.weight)


class Stream(nn.Module):
    """A residual stream without BatchNorm, one with BatchNorm before its layers, or one with BatchNorm after them."""

    def __init__(self, seed: int, norm: str = "none", width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = norm
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.branches = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])
        self.norms = nn.ModuleList([nn.Identity() if norm == "none" else nn.BatchNorm2d(width) for _ in range(3)])
        self.head = nn.Linear(width, 4)
        for norm_ in self.norms:
            if isinstance(norm_, nn.BatchNorm2d):
                norm_.running_var.uniform_(0.5, 2.0)
                norm_.running_mean.uniform_(-0.5, 0.5)

    def forward(self, x):
        x = self.stem(x)
        for layer, norm in zip(self.branches, self.norms, strict=True):
            x = x + (layer(F.relu(norm(x))) if self.norm == "before" else norm(layer(F.relu(x))))
        return self.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("norm", ["none", "before", "after"])
def test_equal_parents_give_the_parent_exactly(norm):
    parent = Stream(0, norm).eval()
    _, child = child_of([parent, copy.deepcopy(parent)])
    assert all(torch.equal(tensor, child.state_dict()[key]) for key, tensor in parent.state_dict().items())


def test_equal_parents_in_another_order_give_the_parent():
    first, groups = Stream(0, "after").eval(), find_groups(Stream(0, "after"), IMAGE)
    order = {group.name: torch.randperm(group.size) for group in groups.free}
    state = dict(first.state_dict())
    for group in groups.free:
        state = group.permute(state, order[group.name])
    second = Stream(1, "after").eval()
    second.load_state_dict(state)
    back = {name: Coupling(permutation).inverse() for name, permutation in order.items()}
    _, child = child_of([first, second], couplings=[identity(groups), back])
    assert all(torch.equal(tensor, child.state_dict()[key]) for key, tensor in first.state_dict().items())


@pytest.mark.parametrize("norm", ["none", "before"])
def test_every_operand_of_an_addition_gets_back_what_it_lost(norm):
    """The parents agree in the stem, in half of one branch, and in nothing else."""
    parents = [Stream(seed, norm).eval() for seed in (0, 1)]
    with torch.no_grad():
        parents[1].stem.weight.copy_(parents[0].stem.weight)
        parents[1].branches[0].weight[:4] = parents[0].branches[0].weight[:4]
    plain, child = child_of(parents, (0.3, 0.7))

    def lost(network, name):
        rows = [m.get_submodule(name).weight.flatten(1).norm(dim=1) for m in (*parents, network)]
        return rows[2] / (0.3 * rows[0] + 0.7 * rows[1])

    for name in ("stem", "branches.0", "branches.1", "branches.2", "head"):
        torch.testing.assert_close(lost(child, name), torch.ones_like(lost(child, name)))
    assert bool((lost(plain, "branches.0")[4:] < 0.95).all())
    assert bool((lost(plain, "branches.0")[:4] > 0.999).all())
    for name, tensor in plain.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            assert torch.equal(tensor, child.state_dict()[name])
    if norm == "before":  # what the stream gives is restored, so its BatchNorm keeps the parents' deviations
        deviations = [parent.norms[1].running_var.sqrt() for parent in parents]
        torch.testing.assert_close(child.norms[1].running_var, (0.3 * deviations[0] + 0.7 * deviations[1]).square())


def test_it_is_a_bias_correction_by_depth():
    """Without additions, dividing each bias by what is lost up to its depth gives the same scores up to scale."""
    torch.manual_seed(0)
    parents = [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in "ab"]
    with torch.no_grad():  # the second parent is the first with every weight turned by a right angle: all lose alike
        for place in (0, 2, 4):
            first, second = (parent[place].weight for parent in parents)
            first /= first.norm(dim=1, keepdim=True)
            second -= (first * second).sum(1, keepdim=True) * first
            second /= second.norm(dim=1, keepdim=True)
    plain, child = child_of(parents, example=torch.zeros(1, 6))
    kept = 1.0
    with torch.no_grad():
        for place in (0, 2, 4):
            kept /= 2**0.5
            plain[place].bias.mul_(kept)
        images = torch.randn(10, 6)
        torch.testing.assert_close(plain(images) / kept, child(images))


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_parent_with_other_scales_inside_changes_nothing(factor):
    """In front of a BatchNorm weights have no scale: the estimate goes by the deviations that the parents had."""
    parents = [Stream(seed, "after").eval() for seed in (0, 1)]
    _, child = child_of(parents)
    with torch.no_grad():
        for parent in parents:
            for layer, norm in zip(parent.branches, parent.norms, strict=True):
                layer.weight.mul_(factor)
                layer.bias.mul_(factor)
                norm.running_mean.mul_(factor)
                norm.running_var.mul_(factor**2)
                norm.eps = 1e-5 * factor**2
    _, scaled = child_of(parents)
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(scaled(images), child(images), rtol=1e-4, atol=1e-5)


def test_soft_couplings_count_as_shrinking():
    parents = [Stream(0).eval(), Stream(0).eval()]
    groups = find_groups(parents[0], IMAGE)
    even = {g.name: Coupling(plan=torch.full((g.size, g.size), 1 / g.size**2)) for g in groups.free}
    plain, child = child_of(parents, couplings=[even, even])
    goal = parents[0].stem.weight.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(child.stem.weight.flatten(1).norm(dim=1), goal.expand(8))
    assert bool((plain.stem.weight.flatten(1).norm(dim=1) < goal).all())


def test_silent_channels_stay_silent():
    parents = [Stream(seed).eval() for seed in (0, 1)]
    with torch.no_grad():
        parents[0].branches[1].weight[0] = -parents[1].branches[1].weight[0]
    _, child = child_of(parents)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in child.state_dict().values())
    assert not bool(child.branches[1].weight[0].any())


def test_networks_with_batch_norm_are_better_than_with_averaged_statistics():
    parents = digits_parents("same-a", "same-b")
    data = load_data("digits")
    images = Loader(data.train, data.preprocessing, batch_size=500)
    accuracy = {
        renorm: evaluate(
            fuse(
                Parents(parents, example=data.example()), Recipe(refit="none", criterion="weights", renorm=renorm), None
            ).child,
            images,
        ).accuracy
        for renorm in ("none", "data-free")
    }
    assert accuracy["data-free"] > accuracy["none"] + 0.1


def test_no_image_is_needed_on_the_command_line(tmp_path):
    parents = digits_files("same-a", "same-b")
    out = tmp_path / "child.safetensors"
    command = ["fuse", *parents, "--criterion", "weights", "--renorm", "data-free", "--solver", "ipfp", "--quiet"]
    assert main([*command, "--calibration", "0", "--out", str(out)]) == 0
    first = read_checkpoint(out).digest
    assert main([*command, "--calibration", "100", "--out", str(out)]) == 0
    assert read_checkpoint(out).digest == first


def test_heads_of_other_labels_are_left():
    parents = [build_network("digits_resnet(width=0.5, classes=5)").eval() for _ in "ab"]
    template = build_network("digits_resnet(width=0.5)").eval()
    child = fuse(
        Parents(parents, example=IMAGE, labels=[range(5), range(5, 10)], template=template),
        Recipe(refit="none", criterion="weights", renorm="data-free", restarts=1),
    ).child
    assert child.linear.weight.shape[0] == 10
    assert all(bool(torch.isfinite(tensor).all()) for tensor in child.state_dict().values())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"refit": "ridge"}, "choose refit none"),
        ({"keep_worst": 0.2}, "keep none side by side"),
        ({"augment_statistics": True}, "augment_statistics True would be ignored: it needs renorm auto, not data-free"),
    ],
)
def test_recipes_that_contradict_it(settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Recipe.create(renorm="data-free", criterion="weights", **settings)
