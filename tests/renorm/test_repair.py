"""REPAIR: statistics of the parents for the child's layers, folded into its weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depfuse import Recipe, find_groups, fuse
from depfuse.align import Coupling
from depfuse.data import Loader, Preprocessing, Split, calibration_loader, load_data
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate
from depfuse.fusion.parents import Parents
from depfuse.merge import AlignedParents, average
from depfuse.models import build_network
from depfuse.renorm import repair, reset_batch_norm
from depfuse.train import TrainRecipe, train


class Plain(nn.Module):
    """Convolutions without BatchNorm, with a residual stream and a layer without bias."""

    def __init__(self, seed: int = 0, norm: bool = False, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(width, 8, 3, padding=1), nn.Conv2d(8, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.hidden, self.head = nn.Linear(width, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.norm(self.inner(x)))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


def images(count: int = 120) -> Loader:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=40)


def statistics(model: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel of a layer's outputs, all images at once."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _i, output: seen.append(output.detach()))
    with torch.no_grad():
        model.eval()(torch.cat([batch for batch, _ in images()]))
    handle.remove()
    rows = seen[0].double().movedim(1, -1).flatten(0, -2)
    return rows.mean(0), rows.std(0, correction=0)


def merged(parents, groups, shares):
    """The average of a parent and another whose channels stand in another order, as a random coupling brings them."""
    generator = torch.Generator().manual_seed(5)
    second = {g.name: Coupling(torch.randperm(g.size, generator=generator)) for g in groups.free}
    couplings = [{g.name: Coupling.identity(g.size) for g in groups.free}, second]
    return average(parents, groups, couplings, shares), couplings


@pytest.mark.parametrize("norm", [False, True])
def test_every_layer_gets_the_parents_statistics(norm):
    parents, shares = [Plain(seed, norm).eval() for seed in (0, 1)], (0.3, 0.7)
    for parent in parents:
        reset_batch_norm(parent, images())
    groups = find_groups(parents[0], torch.zeros(1, 1, 8, 8))
    child, couplings = merged(parents, groups, shares)
    head = child.head.weight.clone()
    layers = ["stem", "norm" if norm else "inner", "outer", "hidden"]
    goals = {}
    for name in layers:
        slots = {slot.key: group for group in groups.free for slot in group.slots if slot.role != "consumes"}
        order = couplings[1][slots[f"{name}.weight"].name].permutation
        first, second = statistics(parents[0], name), statistics(parents[1], name)
        goals[name] = [0.3 * a + 0.7 * b[order] for a, b in zip(first, second, strict=True)]
    repair(child, AlignedParents(parents, groups, couplings, shares), images())
    for name in layers:
        mean, deviation = statistics(child, name)
        # A batch's own statistics stand for all images' while the layers after it are looked at.
        torch.testing.assert_close(deviation, goals[name][1], rtol=0.03, atol=1e-3)
        if name != "outer":  # it has no bias to shift
            torch.testing.assert_close(mean, goals[name][0], rtol=0.03, atol=0.02 * float(goals[name][1].mean()))
    assert torch.equal(child.head.weight, head)
    assert child.state_dict().keys() == parents[0].state_dict().keys()


def test_rescaling_leaves_biases_out():
    parents = [Plain(seed).eval() for seed in (0, 1)]
    groups = find_groups(parents[0], torch.zeros(1, 1, 8, 8))
    child, couplings = merged(parents, groups, (0.5, 0.5))
    before = copy.deepcopy(child)
    repair(child, AlignedParents(parents, groups, couplings, (0.5, 0.5)), images(), shift=False)
    scale = child.stem.bias / before.stem.bias
    torch.testing.assert_close(child.stem.weight / before.stem.weight, scale.reshape(-1, 1, 1, 1).expand(12, 1, 3, 3))
    torch.testing.assert_close(
        statistics(child, "stem")[1],
        0.5 * statistics(parents[0], "stem")[1]
        + 0.5 * statistics(parents[1], "stem")[1][couplings[1][_group(groups, "stem.weight")].permutation],
    )


def _group(groups, key):
    return next(g.name for g in groups.free for slot in g.slots if slot.key == key and slot.role != "consumes")


@pytest.mark.parametrize("renorm", ["repair", "rescale"])
def test_a_parent_and_itself_give_itself(renorm):
    for parent in (Plain(0).eval(), build_network("digits_resnet(width=0.5)").eval()):
        reset_batch_norm(parent, images())
        child = fuse([parent, copy.deepcopy(parent)], Recipe(refit="none", renorm=renorm), images()).child
        batch = next(iter(images()))[0]
        with torch.no_grad():
            torch.testing.assert_close(child(batch), parent(batch), rtol=1e-2, atol=1e-2)  # batches differ


def test_silent_channels_stay_silent():
    parents = [Plain(seed).eval() for seed in (0, 1)]
    with torch.no_grad():
        for parent in parents:
            parent.stem.weight[0] = 0.0
    child = fuse(parents, Recipe(refit="none", renorm="repair", criterion="weights"), images()).child
    assert all(bool(torch.isfinite(tensor).all()) for tensor in child.state_dict().values())


class Odd(nn.BatchNorm2d):
    """Not torch's own."""


def test_what_cannot_be_repaired_is_named():
    parents = [Plain(seed).eval() for seed in (0, 1)]
    for parent in parents:
        parent.norm = Odd(8).eval()
    with pytest.raises(RecipeError, match=r"norm \(Odd\).*choose reset"):
        fuse(parents, Recipe(refit="none", renorm="repair"), images())
    plain = [Plain(seed).eval() for seed in (0, 1)]
    example = torch.zeros(1, 1, 8, 8)
    with pytest.raises(RecipeError, match="needs calibration images"):
        fuse(Parents(plain, example=example), Recipe(refit="none", renorm="repair", criterion="weights"), None)


@pytest.mark.slow
def test_repair_recovers_a_plain_vgg():
    data = load_data("digits", size=(32, 32))
    parents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        parent = build_network("vgg11(batch_norm=False, in_channels=1, width=0.5)")
        steps = {"batch_size": 32, "learning_rate": 0.02, "warmup": 5.0, "weight_decay": 2e-3, "label_smoothing": 0.0}
        train(parent, data, TrainRecipe.suited_to(data, epochs=30, seed=seed, **steps))
        parents.append(parent)
    calibration, test = calibration_loader(data, 1000), Loader(data.test, data.preprocessing, batch_size=500)
    accuracy = {
        renorm: evaluate(
            fuse(parents, Recipe(renorm=renorm, solver="sinkhorn", regularisation=0.1), calibration).child, test
        ).accuracy
        for renorm in ("none", "repair")
    }
    mean = sum(evaluate(parent, test).accuracy for parent in parents) / 2
    assert mean > 0.95
    assert accuracy["repair"] - accuracy["none"] >= 0.8 * (mean - accuracy["none"])
