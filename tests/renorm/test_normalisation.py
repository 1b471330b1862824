"""Images that are not normalised as in training are noticed, and the values that fit are found."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from depfuse.cli import main
from depfuse.data import load_data
from depfuse.data.floats import to_floats
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, write_checkpoint
from depfuse.io.into_network import load_network
from depfuse.models import build_network
from depfuse.renorm.input_normalisation import FirstBatchNorm, forgotten_normalisation

TOP = Path(__file__).resolve().parents[2]
SHIPPED = sorted((TOP / "checkpoints").glob("digits*.safetensors"))


def pictures(count: int = 96, channels: int = 3, seed: int = 0) -> Tensor:
    """Images in [0, 1]: a blurred colour field each, brighter in the middle, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) + torch.linspace(0.0, 0.6, channels).view(-1, 1, 1)
    smooth = nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
    return (smooth / 1.7 + 0.05 * torch.rand(smooth.shape, generator=generator)).clamp(0, 1)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def seen(images: Tensor, channels: int = 3, *, bias: bool = False) -> nn.Module:
    """A network whose BatchNorms have the statistics of some images."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1, bias=bias), nn.BatchNorm2d(12, momentum=None), nn.ReLU(),
        nn.Conv2d(12, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.Flatten(), nn.LazyLinear(4),
    )  # fmt: skip
    network.train()(images)
    return network.eval()


values = st.tuples(*[st.floats(0.1, 0.7)] * 3)
deviations = st.tuples(*[st.floats(0.05, 0.6)] * 3)


@given(mean=values, std=deviations, bias=st.booleans())
@settings(max_examples=12, deadline=None)
def test_the_values_of_training_are_computed_from_the_statistics(mean, std, bias):
    images = pictures()
    network = seen(normalised(images, mean, std), bias=bias)
    first = FirstBatchNorm(network, images, (0.0,), (1.0,))
    assert first.name == "1"
    assert first.distance(mean, std) < 1e-5
    found = first.fitted()
    assert found.mean == pytest.approx(mean, abs=0.01)
    assert found.std == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(("mean", "std"), [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.25,) * 3)])
def test_what_was_forgotten_is_found_and_what_fits_is_not_questioned(mean, std):
    network = seen(normalised(pictures(), mean, std))
    others = pictures(seed=7)
    before = copy.deepcopy(network.state_dict())
    assert forgotten_normalisation(network, normalised(others, mean, std), mean, std) == []
    found = forgotten_normalisation(network, others, (0.0,), (1.0,))
    assert found
    assert np.allclose(np.broadcast_to(found[0].mean, 3), mean, atol=0.1)
    assert np.allclose(np.broadcast_to(found[0].std, 3), std, rtol=0.3)
    bytes_ = others * 255
    assert forgotten_normalisation(network, bytes_, (0.0,), (1 / 255,))
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_images_of_another_kind_are_no_mistake():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = seen(normalised(pictures(), mean, std))
    for others in (1 - pictures(), pictures() ** 2, pictures().mean(1, keepdim=True).expand(-1, 3, -1, -1)):
        assert forgotten_normalisation(network, normalised(others, mean, std), mean, std) == []
    noise = torch.rand(96, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    assert forgotten_normalisation(network, normalised(noise, mean, std), mean, std) == []


def test_networks_that_cannot_tell_are_left_alone():
    images = pictures()
    without = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    without(images)
    behind = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4, momentum=None), nn.Flatten())
    behind.train()(normalised(images, (0.5,) * 3, (0.25,) * 3))
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    damaged = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    damaged[1].running_var.fill_(-1.0)
    for network in (without, behind, fresh, damaged):
        assert FirstBatchNorm(network, images, (0.0,), (1.0,)).name is None
        assert forgotten_normalisation(network, images, (0.0,), (1.0,)) == []


def test_a_batch_norm_on_the_inputs_themselves_tells_as_well():
    images = pictures()
    network = nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.Conv2d(3, 4, 3))
    network.train()(normalised(images, (0.5,) * 3, (0.5,) * 3))
    assert forgotten_normalisation(network, images, (0.0,), (1.0,))[0].mean == (0.5,)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_networks_fit_their_cards(path):
    card = read_checkpoint(path).card
    data = load_data(card.data)
    own = card.preprocessing
    images = to_floats(data.train.images[::10], own)
    assert forgotten_normalisation(load_network(path), images, own.mean or (0.0,), own.std or (1.0,)) == []
    mean, std = own.mean[0] - 3 * own.std[0] / 0.3, own.std[0] / 0.3
    assert forgotten_normalisation(load_network(path), images * 0.3 + 3, (mean,), (std,))


def test_the_command_line_says_what_to_give(tmp_path, capsys):
    images = (pictures(64, 1) * 255).byte()
    torch.manual_seed(0)
    network = build_network("digits_resnet(width=0.25)", classes=2).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network(normalised(images.float() / 255, (0.1307,), (0.3081,)))
    labels = np.arange(64) % 2
    np.savez(tmp_path / "own.npz", x_train=images.numpy(), y_train=labels, x_test=images.numpy(), y_test=labels)
    write_checkpoint(tmp_path / "a.safetensors", network.state_dict(), Card(architecture="digits_resnet(width=0.25)"))
    arguments = ["eval", str(tmp_path / "a.safetensors"), "--arch", "digits_resnet(width=0.25)"]
    arguments += ["--data", str(tmp_path / "own.npz")]
    assert main([*arguments, "--mean", "0.1307", "--std", "0.3081"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*arguments, "--mean", "0", "--std", "0.05"]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a.safetensors" in said
    assert "(mean 0, std 0.05): what fits is --mean 0.1307 --std 0.3081" in said
