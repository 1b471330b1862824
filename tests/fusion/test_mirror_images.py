"""Whether images are mirrored: the parents tell, the user may decide, and what has no effect is refused or said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.data.loader import Loader
from depfuse.data.tensors import DataSet, Split
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.fusion.arguments import read_arguments
from depfuse.fusion.mirror_images import Mirroring
from depfuse.fusion.prepared import Prepared
from depfuse.tasks.classes import Classes, Dense
from depfuse.tasks.regression import Regression
from depfuse.tasks.task import Task
from depfuse.teach.distil import Distillation

IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """A convolution and a head over means, which do not change when images and kernels are mirrored."""

    def __init__(self, seed: int, *, symmetric: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6 * 8, 4)
        if symmetric:
            with torch.no_grad():
                self.conv.weight.copy_((self.conv.weight + self.conv.weight.flip(-1)) / 2)
                columns = self.fc.weight.reshape(4, 6, 8)
                self.fc.weight.copy_(((columns + columns.flip(-1)) / 2).flatten(1))
                self.fc.weight.mul_(8)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean(2).flatten(1))


class Function(nn.Module):
    """A function of images as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def told(function: Callable[[Tensor], Tensor], task: Task, images: Tensor = IMAGES) -> bool | None:
    """Ask two networks of a function."""
    asked = [Ensemble([Function(function)], (1.0,), task=task)] * 2
    return Mirroring.told_by(asked, Loader(Split(images), batch_size=16)).allowed


def left(x: Tensor) -> Tensor:
    """Score what is in the left half."""
    return 10 * x[..., :4].mean((2, 3))


@pytest.mark.parametrize(
    ("function", "task", "allowed"),
    [
        (lambda x: 10 * x.mean((2, 3)), Classes(), True),
        (left, Classes(), False),
        (lambda x: 10 * x, Dense(), True),  # maps are mirrored back
        (lambda x: 10 * x.roll(1, -1), Dense(), False),
        (lambda x: 10 * x.flatten(2), Dense(), True),  # places in a row
        (lambda x: torch.zeros(len(x), 3), Classes(), None),  # nothing is told of an image
    ],
)
def test_parents_tell_whether_images_are_mirrored(
    function: Callable[[Tensor], Tensor], task: Task, allowed: bool | None
) -> None:
    assert told(function, task) is allowed


def test_numbers_tell_it_too() -> None:
    task = Regression.of([left(IMAGES), left(IMAGES)])
    assert told(left, task) is False
    assert told(lambda x: x.mean((2, 3)), task) is True


def test_nobody_is_asked_of_grey_images_and_one_image_tells_nothing() -> None:
    asked = [Ensemble([Function(left)], (1.0,), task=Classes())]
    assert Mirroring.told_by(asked, Loader(Split(IMAGES[:, :1]), batch_size=8)) == Mirroring()
    assert told(left, Classes(), IMAGES[:1]) is None


def test_trials_of_a_search_share_the_images_that_were_decided_on() -> None:
    images = Loader(Split(IMAGES), batch_size=8)
    assert images.mirroring(None) is images
    assert images.mirroring(False) is images.mirroring(False)
    assert images.mirroring(False).mirroring(True) is not images.mirroring(False)
    assert images.suited_augmentation.flip


@pytest.mark.parametrize(("symmetric", "given", "mirrored"), [
    (True, None, True), (False, None, False), (False, True, True), (True, False, False),
])  # fmt: skip
def test_a_fusion_learns_from_what_parents_or_the_user_say(symmetric: bool, given: bool | None, mirrored: bool) -> None:
    parents = [Network(seed, symmetric=symmetric) for seed in (0, 1)]
    settings: dict[str, object] = {"refit": "ridge", **({} if given is None else {"calibration.mirror": given})}
    prepared = Prepared.of(read_arguments(parents, Recipe.create(settings), IMAGES, None)[0])
    images = prepared.inputs.calibration
    assert images is not None
    assert images.suited_augmentation.flip is mirrored
    assert images.first(4).in_batches(2).suited_augmentation.flip is mirrored
    assert prepared.recipe.calibration.mirror is mirrored
    assert ("mirror" in prepared.mirroring.because) is (given is None)


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_the_result_says_it_and_training_follows() -> None:
    result = fuse(
        [Network(seed, symmetric=False) for seed in (0, 1)],
        {"refit.steps": 1, "train.finetune": 1},
        IMAGES,
        training=Distillation((IMAGES, torch.arange(40) % 4)),
    )
    assert result.recipe.calibration.mirror is False
    assert "images are not mirrored: the parents' outputs for mirror images differ by" in str(result)
    data = DataSet("colour", (), Split(IMAGES), None, Loader(Split(IMAGES), batch_size=2).preprocessing)
    training = Distillation(data)
    assert training.data.suited_augmentation.flip
    assert not training.mirroring(False).data.suited_augmentation.flip
    assert training.mirroring(False).data.suited_augmentation.translate == 1


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_what_has_no_effect_is_refused_or_said() -> None:
    tables = torch.randn(20, 5)
    parents = [nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2)]
    with pytest.raises(RecipeError, match="are no images"):
        fuse(parents, {"calibration.mirror": True}, tables)
    with pytest.raises(RecipeError, match=r"calibration\.mirror"):
        Recipe.create({"calibration.mirror": True, "refit": "none"})
    with pytest.warns(DepfuseWarning, match=r"refit\.augment: the calibration data are no images"):
        prepared = Prepared.of(
            read_arguments(parents, Recipe.create({"refit": "ridge", "refit.augment": True}), tables, None)[0]
        )
    assert prepared.recipe.settings["refit.augment"] is False
