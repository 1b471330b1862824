"""What no parent and no child may be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import Loader, Preprocessing, Split
from depfuse.errors import DepfuseWarning, FusionError, RecipeError
from depfuse.fusion.soundness import Soundness
from depfuse.models import build_network


def images(count: int = 40) -> Loader:
    pixels = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=20)


def parents(arch: str = "digits_resnet(width=0.25)") -> list[nn.Module]:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(build_network(arch).eval())
    return found


@pytest.mark.parametrize("renorm", ["none", "data-free", "reset"])
def test_negative_variances_are_refused_by_parent_and_key(renorm):
    models = parents()
    models[1].bn1.running_var[1] = -1e-3
    with pytest.raises(RecipeError, match=r"parent 2 has negative variances in bn1\.running_var \(1 of 4\)"):
        fuse(models, Recipe(criterion="weights", refit="none", renorm=renorm), calibration=images())


def test_the_first_step_after_which_a_child_is_not_finite_is_named():
    models = parents()
    sound = Soundness(models, images(), None)
    broken = copy.deepcopy(models[0])
    sound.after("the merge", broken)
    sound.check()
    broken.bn1.running_mean[0] = torch.nan
    sound.after("renorm repair", broken)
    sound.after("refit ridge", broken)
    with pytest.raises(FusionError, match=r"after renorm repair bn1\.running_mean holds NaN or infinite values"):
        sound.check()
    sound.after("the training", models[0])
    sound.check()


def test_outputs_that_are_not_finite_are_found_where_tensors_are():
    models = parents()
    sound = Soundness(models, images(), None)
    broken = copy.deepcopy(models[0])
    broken.bn1.running_var.fill_(-1.0)
    sound.after("the merge", broken)
    with pytest.raises(FusionError, match="after the merge its outputs hold NaN"):
        sound.check()


def test_a_constant_child_is_refused_and_one_that_hardly_varies_is_said():
    models = parents()
    sound = Soundness(models, images(), None)
    sound.check_spread(models[0])
    child = copy.deepcopy(models[0])
    child.linear.weight.data.mul_(3e-4)
    with pytest.warns(DepfuseWarning, match="hardly depends on its input"):
        sound.check_spread(child)
    child.linear.weight.data.zero_()
    with pytest.raises(FusionError, match="the same for every image"):
        sound.check_spread(child)


def two_layers(first: float, second: float) -> nn.Module:
    """A perceptron whose layers are scaled by these."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    network[1].weight.data.mul_(first)
    network[3].weight.data.mul_(second)
    return network.eval()


def test_fuse_returns_no_child_that_is_constant_or_not_finite():
    """Nor where each parent is neither: one layer cancels, or both layers are large."""
    recipe = Recipe(refit="none", renorm="none")
    with pytest.raises(FusionError, match="the same for every image"):
        fuse([two_layers(1.0, 1.0), two_layers(1.0, -1.0)], recipe, calibration=images())
    with pytest.raises(FusionError, match="after the merge its outputs hold NaN or infinite values"):
        fuse([two_layers(1e25, 1e-25), two_layers(1e-25, 1e25)], recipe, calibration=images())


@pytest.mark.parametrize(
    ("factor", "said"), [(50.0, "times as much .* those of parent 1"), (0.0, "parent 2 gives the same")]
)
def test_parents_of_other_scales_are_named(factor: float, said: str) -> None:
    first, second = parents()
    with torch.no_grad():
        second.linear.weight.mul_(factor)
    with pytest.warns(DepfuseWarning, match=said):
        fuse([first, second], Recipe(refit="none"), images())
