"""A child does not depend on how the calibration images are cut into batches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import Loader, Preprocessing, Split
from depfuse.data.augmentation import Augmentation
from depfuse.errors import DataError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.wide, self.norm = nn.Linear(6 * 16, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x))).flatten(1)
        return self.head(torch.relu(self.norm(self.wide(x))))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Small().eval()


def images(count: int, batch_size: int) -> Loader:
    pixels = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    split = Split(pixels, torch.zeros(count, dtype=torch.int64))
    return Loader(split, Preprocessing.create(mean=(0.5,), std=(0.25,)), batch_size=batch_size)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (torch.rand(8, 8, 8, 1), r"images of shape 8x8x1 do not fit Small: .*; give them as \(N, C, H, W\)"),
        (torch.rand(8, 3, 8, 8), "images of shape 3x8x8 do not fit Small: .*"),
        ([(torch.rand(1, 8, 8), None), (torch.rand(1, 8, 8), 1)], "holds None, such as a label that is missing"),
    ],
)
def test_inputs_that_do_not_fit_are_said(given: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        fuse([network(0), network(1)], "fast", given)


@pytest.mark.parametrize(
    "settings",
    [
        {"refit": "none", "renorm": "reset"},
        {"refit": "none", "renorm": "reset", "augment_statistics": True},
        {"refit": "none", "renorm": "repair"},
        {"refit": "ridge", "refit_steps": 4},
        {"refit": "regmean"},
        {"refit": "none", "solver": "sinkhorn-implicit", "iterations": 5},
        {"goal": "best", "refit_steps": 4},
        {"refit": "none", "average": "fisher"},
        {"refit": "none", "weights_by": "stage"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_a_child_does_not_depend_on_the_batches(settings):
    parents = [network(0), network(1)]
    recipe = Recipe(**settings)
    few, many = (fuse(copy.deepcopy(parents), recipe, calibration=images(120, size)).child for size in (4, 120))
    test = (torch.rand(20, 1, 8, 8) - 0.5) * 4
    torch.testing.assert_close(few(test), many(test), rtol=1e-3, atol=1e-4)


def test_batches_of_another_size_hold_the_same_images():
    augment = Augmentation(flip=True, translate=1)
    loader = images(10, 3).augmented(augment, seed=5)
    whole = torch.cat([batch for batch, _ in loader])
    again = loader.in_batches(6)
    assert [len(batch) for batch, _ in again] == [5, 5]
    assert torch.equal(torch.cat([batch for batch, _ in again]), whole)
