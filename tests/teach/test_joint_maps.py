"""Parents that know different labels of maps, or of several labels at once: the child has the union, without labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import fuse
from depfuse.data import Loader, Split
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import ensemble_outputs, mean_logits
from depfuse.errors import RecipeError
from depfuse.fusion.parents import Parents
from depfuse.tasks.classes import Dense
from depfuse.teach.heads import head_of
from depfuse.teach.joint_head import HeadFit, can_have_joint_head, knowledge_differs, with_joint_head

COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.8, 0.8, 0]])


class Maps(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.deep, self.deep_norm = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Conv2d(12, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.relu(self.deep_norm(self.deep(x))))


class Labels(Maps):
    """Which colours are in an image."""

    def __init__(self, labels: int) -> None:
        super().__init__(labels)
        self.head = nn.Linear(12, labels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep_norm(self.deep(F.relu(self.norm(self.conv(x))))))
        return self.head(x.mean((2, 3)))


@cache
def blocks() -> tuple[Tensor, Tensor]:
    """Images of four blocks, each of one colour, and the colours (N, H, W)."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 4, (300, 2, 2), generator=generator)
    maps = colours.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = COLOURS[maps].movedim(-1, 1) - 0.4 + 0.8 * torch.randn(300, 3, 8, 8, generator=generator)
    return images, maps


def present() -> Tensor:
    return (blocks()[1].flatten(1)[:, None] == torch.arange(4)[:, None]).any(2).float()


def trained(known: Sequence[int], seed: int, *, maps: bool = True) -> nn.Module:
    """A network that has seen some colours only, as its outputs in that order."""
    torch.manual_seed(seed)
    network = (Maps if maps else Labels)(len(known)).train()
    images, colours = blocks()
    own = torch.full_like(colours, -100)
    for number, colour in enumerate(known):
        own[colours == colour] = number
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(100):
        chosen = torch.randint(len(images), (32,))
        found = network(images[chosen])
        if maps:
            loss = F.cross_entropy(found, own[chosen], ignore_index=-100)
        else:
            loss = F.binary_cross_entropy_with_logits(found, present()[chosen][:, list(known)])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def data() -> Loader:
    return Loader(Split(blocks()[0]), batch_size=50)


SETS = ((0, 1), (2, 3))


@cache
def halves() -> tuple[nn.Module, ...]:
    return tuple(trained(known, seed) for seed, known in enumerate(SETS))


def right(scores: Tensor) -> float:
    return float((scores.argmax(1) == blocks()[1]).float().mean())


def test_one_head_for_all_places_tells_classes_apart_better_than_heads_side_by_side() -> None:
    sets, shares = LabelSets.create(SETS), (0.5, 0.5)
    before = [copy.deepcopy(model.state_dict()) for model in halves()]
    teachers = with_joint_head(halves(), shares, data(), None, sets, Maps(4), HeadFit(dense=True)).networks
    with torch.no_grad():
        beside = mean_logits([model(blocks()[0]) for model in halves()], shares, sets)
        joint = mean_logits([model(blocks()[0]) for model in teachers], shares)
    assert right(joint) > right(beside) + 0.005
    assert right(joint) > 0.75
    for model, state in zip(halves(), before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_the_child_of_two_segmentation_networks_knows_the_classes_of_both() -> None:
    parents = Parents(list(halves()), labels=SETS, template=Maps(4))
    result = fuse(parents, {"refit": {"name": "ridge", "steps": 20}}, data())
    assert result.recipe.task.name == "dense"
    assert result.joint
    with torch.no_grad():
        teacher = mean_logits([model(blocks()[0]) for model in result.teachers], (0.5, 0.5))
        assert right(result.child(blocks()[0])) > 0.95 * right(teacher)


def test_knowledge_of_maps_differs_place_by_place() -> None:
    whole = [trained((0, 1, 2, 3), seed) for seed in (5, 6)]
    assert not knowledge_differs(whole, data(), dense=True)
    other = copy.deepcopy(whole[0])
    with torch.no_grad():
        other.head.weight.copy_(whole[0].head.weight.roll(1, 0))
        other.head.bias.copy_(whole[0].head.bias.roll(1, 0))
    assert knowledge_differs([whole[0], other], data(), dense=True)


def test_which_layers_can_be_a_head_of_maps() -> None:
    assert can_have_joint_head(halves(), data(), LabelSets.create(SETS), dense=True)
    wide = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    assert not can_have_joint_head([wide], data(), dense=True)
    with pytest.raises(RecipeError, match="end in a pointwise convolution with a bias, not in Conv2d"):
        head_of(wide, blocks()[0][:1], dense=True)


def test_classes_that_nobody_knows_have_no_probability_at_any_place() -> None:
    sets = LabelSets(SETS, others=(7,))
    outputs = [torch.randn(2, 2, 3, 3) for _ in SETS]
    found = ensemble_outputs(outputs, (0.5, 0.5), sets, task=Dense())
    wanted = torch.cat(outputs, 1).softmax(1)
    torch.testing.assert_close(found[:, :4], wanted)
    assert not found[:, 4].any()


def test_the_child_of_networks_with_several_labels_has_the_union() -> None:
    sets = ((0, 1, 2), (2, 3))
    parents = [trained(known, seed, maps=False) for seed, known in enumerate(sets)]
    given = Parents(parents, labels=sets, template=Labels(4))
    result = fuse(given, {"refit": {"name": "ridge", "steps": 20}}, data(), task="multilabel")
    assert not result.joint, "labels that are independent need no common head"
    with torch.no_grad():
        first, second = (model(blocks()[0]) for model in result.teachers)
        wanted = torch.stack([first[:, 0], first[:, 1], (first[:, 2] + second[:, 0]) / 2, second[:, 1]], 1)
        torch.testing.assert_close(result.ensemble.combine([first, second]), wanted.sigmoid())
        found = result.child(blocks()[0])
    correct = ((found > 0).float() == present()).float().mean(0)
    teacher = ((wanted > 0).float() == present()).float().mean(0)
    assert bool((correct > teacher - 0.08).all()), (correct, teacher)
    assert float(teacher.min()) > 0.85
    with pytest.raises(RecipeError, match="one head tells classes apart, and the task is multilabel"):
        fuse(given, {"refit": "none", "teach": {"head": "always"}}, data(), task="multilabel")
