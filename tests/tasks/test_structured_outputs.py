"""Networks that give a dictionary or a tuple: matched and merged as others; a refit needs one tensor, and says so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse import Recipe, fuse
from depfuse.data import Loader, Preprocessing, Split
from depfuse.errors import DataError, RecipeError
from depfuse.tasks.outputs import as_numbers


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Linear(12, 5)
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        features = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        scores = self.head(features)
        return {"out": scores, "sum": features.sum(1)} if self.kind == "dictionary" else (scores, features.sum(1))


def images() -> Loader:
    pixels = torch.randint(0, 256, (60, 1, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Loader(Split(pixels, torch.zeros(60, dtype=torch.int64)), Preprocessing(), batch_size=20)


@pytest.mark.parametrize("kind", ["dictionary", "tuple"])
def test_a_permuted_copy_is_recovered(kind: str) -> None:
    parent = Structured(kind).eval()
    other, order = copy.deepcopy(parent), torch.randperm(12)
    state = {key: value[order] if value.shape[:1] == (12,) else value for key, value in parent.state_dict().items()}
    other.load_state_dict({**state, "head.weight": parent.head.weight[:, order]})
    child = fuse([parent, other], Recipe(refit="none", renorm="none"), images()).child
    batch = torch.rand(7, 1, 6, 6)
    for found, wanted in zip(tree_leaves(child(batch)), tree_leaves(parent(batch)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["dictionary", "tuple"])
@pytest.mark.parametrize("settings", [{"refit": "ridge"}, {"goal": "best"}])
def test_a_refit_of_such_networks_is_refused_in_words(kind: str, settings: dict[str, str]) -> None:
    word = "dict" if kind == "dictionary" else "tuple"
    with pytest.raises(RecipeError, match=f"give a {word} of outputs"):
        fuse([Structured(kind), Structured(kind)], Recipe(**settings), images())


def test_numbers_of_an_image_stand_in_one_column() -> None:
    first, second = torch.rand(4, 2, 3), torch.rand(4)
    numbers = as_numbers({"a": first, "b": (second, torch.zeros(4, dtype=torch.int64))})
    assert numbers.shape == (4, 7, 1)
    assert torch.equal(numbers[:, 6, 0], second)
    assert as_numbers(first) is first
    with pytest.raises(DataError, match="an entry for each image"):
        as_numbers((first, torch.rand(3)))
