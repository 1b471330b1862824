"""Detectors of the same classes: recognised by scores that are low nearly everywhere, and fused as detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depfuse import Parents, fuse
from depfuse.errors import RecipeError

CHEAP = {"preset": "fast", "renorm": "none"}


class Spots(nn.Module):
    """Finds red and green spots: scores of both, and boxes; in columns of places if `columns`."""

    def __init__(self, seed: int, background: bool = False, columns: bool = False, numbers: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.background, self.columns = background, columns
        self.enter = nn.Conv2d(3, 8, 3, 4, 1)
        self.inner = nn.Conv2d(8, 8, 3, 1, 1)
        self.cls, self.box = nn.Conv2d(8, 2 + background, 1), nn.Conv2d(8, numbers, 1)
        assert self.enter.bias is not None
        assert self.cls.bias is not None
        with torch.no_grad():  # two channels carry the colours of a place, in an order of their own
            for colour, channel in enumerate(torch.randperm(8)[:2].tolist()):
                self.enter.weight[channel], self.enter.bias[channel] = 0, -4.0
                self.enter.weight[channel, colour] = 1.0
                self.cls.weight[:, channel] = 0
                self.cls.weight[colour + background, channel] = 3.0
            self.cls.bias.fill_(-4.0)
            if background:
                self.cls.weight[0], self.cls.bias[0] = 0.0, 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.enter(x).relu()
        x = x + 0.01 * self.inner(x).relu()
        found = {"boxes": self.box(x), "classes": self.cls(x)}
        return {name: own.flatten(2).mT for name, own in found.items()} if self.columns else found


def spots(count: int = 24) -> Tensor:
    """Dark pictures with a bright square of one colour."""
    generator = torch.Generator().manual_seed(0)
    pictures = 0.2 * torch.rand(count, 3, 32, 32, generator=generator)
    for number, picture in enumerate(pictures):
        top, left = torch.randint(0, 24, (2,), generator=generator).tolist()
        picture[number % 2, top : top + 8, left : left + 8] = 1.0
    return pictures


@pytest.mark.parametrize("columns", [False, True])
def test_they_are_recognised_by_scores_that_are_low_nearly_everywhere(columns: bool) -> None:
    parents = [Spots(seed, columns=columns).eval() for seed in (1, 2)]
    result = fuse(parents, CHEAP, spots())
    assert result.recipe.task.name == "detection"
    assert "detectors of the same classes, each class a logit of its own" in result.meaning.because
    assert "boxes, numbers beside them; classes, classes; classes is scored" in result.meaning.because
    again = fuse(parents, result.recipe, spots())  # which names the task
    assert all(torch.equal(one, other) for one, other in zip(*states(result, again), strict=True))
    with torch.no_grad():
        assert result.child(spots(4))["classes"].shape == parents[0](spots(4))["classes"].shape


def states(*results: Any) -> list[list[Tensor]]:
    return [list(result.child.state_dict().values()) for result in results]


def test_background_of_a_softmax_is_named_and_then_nothing_has_to_be_recognised() -> None:
    parents = [Spots(seed, background=True).eval() for seed in (1, 2)]
    known = Parents(parents, background=0)
    assert "a softmax with background 0" in fuse(known, CHEAP, spots()).meaning.because
    labelled = Parents(parents, labels=((7, 8, 9), (7, 8, 9)), background=7)
    assert "a softmax with background 0" in fuse(labelled, CHEAP, spots()).meaning.because
    with pytest.raises(RecipeError, match="`background` is 5, which must be a label of each parent"):
        fuse(Parents(parents, labels=((7, 8, 9), (7, 8, 9)), background=5), CHEAP, spots())
    with pytest.raises(RecipeError, match="`background` is 5, and no tensor has a channel of that number"):
        fuse(Parents(parents, background=5), CHEAP, spots())


OTHERS: dict[str, Callable[[int], nn.Module]] = {
    "one number beside them, as a depth": lambda seed: Spots(seed, numbers=1),
    "a network that sees something everywhere": lambda seed: busy(Spots(seed)),
}


def busy(network: Spots) -> Spots:
    assert network.cls.bias is not None
    network.cls.bias.data.fill_(4.0)
    return network


@pytest.mark.parametrize("name", OTHERS)
def test_what_may_be_something_else_is_not_taken_for_a_detector(name: str) -> None:
    parents = [OTHERS[name](seed).eval() for seed in (1, 2)]
    assert fuse(parents, CHEAP, spots()).recipe.task.name == "weighted"
    assert fuse(parents, CHEAP, spots(), task="detection").recipe.task.name == "detection"


class Sure(Spots):
    """Returns the probabilities of classes."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = super().forward(x)
        return {**found, "classes": found["classes"].sigmoid()}


def test_probabilities_of_classes_are_refused_and_not_taken_for_numbers_beside_boxes() -> None:
    parents = [Sure(seed).eval() for seed in (1, 2)]
    with pytest.raises(RecipeError, match=r"classes all lie between 0 and 1.*torch.logit\), or name task weighted"):
        fuse(parents, CHEAP, spots())
    assert fuse(parents, CHEAP, spots(), task="weighted").recipe.task.name == "weighted"
    depths = [Sure(seed, numbers=1).eval() for seed in (1, 2)]
    assert fuse(depths, CHEAP, spots()).recipe.task.name == "weighted"


def test_tensors_of_other_places_are_no_detector() -> None:
    class Apart(Spots):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            found = super().forward(x)
            return {"boxes": found["boxes"], "kinds": found["classes"].mean((2, 3))}

    with pytest.raises(RecipeError, match="no two tensors are over the same places"):
        fuse([Apart(1).eval(), Apart(2).eval()], CHEAP, spots(), task="detection")


class Found(Spots):
    """Returns what it found, after a threshold, as torchvision's detectors do."""

    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        boxes, classes = (found[name].flatten(2).mT for name in ("boxes", "classes"))
        return [{"boxes": own[seen.amax(1) > 9], "scores": seen[seen.amax(1) > 9]} for own, seen in zip(boxes, classes)]  # noqa: B905


@pytest.mark.parametrize("asked", ["auto", "detection", "none"])
def test_networks_that_return_what_they_found_are_refused(asked: str) -> None:
    with pytest.raises(RecipeError, match="let them return the maps before it"):
        fuse([Found(1).eval(), Found(2).eval()], CHEAP, spots(), task=asked)


def test_one_tensor_of_classes_and_boxes_is_no_detector() -> None:
    class One(Spots):
        def forward(self, x: Tensor) -> Any:
            return torch.cat(list(super().forward(x).values()), 1)

    with pytest.raises(RecipeError, match="let them return a dictionary of the two"):
        fuse([One(1).eval(), One(2).eval()], CHEAP, spots(), task="detection")
