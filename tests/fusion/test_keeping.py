"""What comes after the merge is kept only where it brings the child nearer to its parents' ensemble."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from digits_parents import digits_parents
from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import DataSet, calibration_loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.fusion.step_acceptance import StepAcceptance


@pytest.fixture(scope="module")
def same() -> list[nn.Module]:
    return digits_parents("same-a", "same-b")


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs if first.is_floating_point())


@pytest.mark.parametrize("settings", [{"refit": "ridge"}, {"refit": "none"}])
def test_a_network_with_itself_is_itself_however_few_images(same, digits: DataSet, settings):
    few = calibration_loader(digits, 8)
    pair = [same[0], copy.deepcopy(same[0])]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fuse(pair, Recipe(**settings), few)
        again = result.at(result.shares)
    said = [str(warning.message) for warning in caught]
    assert not any("did not bring the child nearer" in one for one in said)  # nothing was to be gained
    assert states_equal(result.child, same[0])
    assert [step.kept for step in result.steps] == [False] * len(result.steps)
    assert result.steps[0].name == "renorm reset"
    assert states_equal(again, result.child)


def test_statistics_that_are_wrong_are_renewed_and_those_that_are_asked_for_as_well(same, digits: DataSet):
    images = calibration_loader(digits, 300)
    found = fuse(same, Recipe(refit="none"), images)
    assert found.steps[0].kept
    assert found.steps[0].after < found.steps[0].before
    assert states_equal(found.child, fuse(same, Recipe(refit="none", renorm="reset"), images).child)
    pair = [same[0], copy.deepcopy(same[0])]
    assert not states_equal(fuse(pair, Recipe(refit="none", renorm="reset"), images).child, same[0])


@pytest.mark.parametrize(("count", "held"), [(3, 1), (80, 10), (256, 32), (400, 32), (512, 32), (1200, 75)])
def test_a_keeper_holds_the_last_images_out(same, digits: DataSet, count: int, held: int):
    images = calibration_loader(digits, count)
    acceptance = StepAcceptance(Ensemble(same, (0.5, 0.5)), images)
    assert torch.equal(acceptance.images.statistics.images, images.images[: count - held])
    assert torch.equal(acceptance.images.judging.images, images.images[count - held :])


def test_of_two_images_none_is_held_out(same, digits: DataSet):
    images = calibration_loader(digits, 80)
    assert StepAcceptance(Ensemble(same, (0.5, 0.5)), images.first(2)).images.judging.count == 2


def test_nearer_is_less_cross_entropy(same, digits: DataSet):
    acceptance = StepAcceptance(Ensemble(same, (1.0, 0.0)), calibration_loader(digits, 400))
    noisy = copy.deepcopy(same[0])
    with torch.no_grad():
        noisy.linear.weight.add_(0.3 * torch.randn_like(noisy.linear.weight))
    assert acceptance.compare("renorm", "reset", noisy, same[0]).kept
    assert not acceptance.compare("renorm", "reset", same[0], noisy).kept
    assert not acceptance.compare("renorm", "reset", same[0], copy.deepcopy(same[0])).kept
    broken = copy.deepcopy(same[0])
    broken.linear.bias.data.fill_(torch.nan)
    assert not acceptance.compare("renorm", "reset", noisy, broken).kept
    assert acceptance.compare("renorm", "reset", broken, noisy).kept
    inputs = torch.cat([images for images, _ in acceptance.images.judging])
    with torch.no_grad():
        wanted = same[0](inputs).softmax(1)
        by_hand = min(float(F.cross_entropy(2 ** (step / 2) * noisy(inputs), wanted)) for step in range(-6, 7))
    assert acceptance.compare("renorm", "reset", same[0], noisy).after == pytest.approx(by_hand, rel=1e-4)
