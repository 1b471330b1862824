"""Parents that share a start are recognised, and others are not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from digits_parents import digits_files
from torch import nn

from depfuse import Recipe, fuse
from depfuse.cli import main
from depfuse.data import Loader, calibration_loader, load_data
from depfuse.evaluate import evaluate
from depfuse.fusion.same_start import share_a_start
from depfuse.io.into_network import load_network
from depfuse.models import build_network
from depfuse.report import FusionReport

FIRST, SECOND = digits_files("same-a", "same-b")


@pytest.fixture(scope="module")
def images() -> Loader:
    return calibration_loader(load_data("digits"), 600, batch_size=300)


def near(network: nn.Module, seed: int, amount: float = 0.02) -> nn.Module:
    """A copy whose weights were moved at random, by a share of their deviation."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.dim() > 1:
                weight.add_(amount * weight.std() * torch.randn(weight.shape, generator=generator))
    return other


def moved(network: nn.Module) -> nn.Module:
    """The same function, with the channels of the first block's inside in reverse order."""
    other = copy.deepcopy(network)
    state = other.state_dict()
    inside = next(key.removesuffix(".conv1.weight") for key in state if key.endswith(".conv1.weight"))
    for key in ("conv1.weight", *(f"bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var"))):
        state[f"{inside}.{key}"].copy_(state[f"{inside}.{key}"].flip(0))
    state[f"{inside}.conv2.weight"].copy_(state[f"{inside}.conv2.weight"].flip(1))
    return other


def test_neighbours_of_one_network_share_its_start(images):
    network = load_network(FIRST)
    assert share_a_start([near(network, 0), near(network, 1)], (0.5, 0.5), images)
    assert share_a_start([near(network, seed, 0.1) for seed in range(4)], (0.25,) * 4, images)
    assert share_a_start([network, network], (0.3, 0.7), images)


def test_networks_of_other_starts_do_not(images):
    first, second = load_network(FIRST), load_network(SECOND)
    assert not share_a_start([first, second], (0.5, 0.5), images)
    assert not share_a_start([first, near(first, 0), second], (0.4, 0.3, 0.3), images)
    assert not share_a_start([first, moved(first)], (0.5, 0.5), images)
    torch.manual_seed(0)
    untrained = [build_network("digits_resnet(width=1.25)").eval() for _ in range(2)]
    assert not share_a_start(untrained, (0.5, 0.5), images)


def test_networks_are_left_as_they_are(images):
    network = load_network(FIRST).train()
    before = copy.deepcopy(network.state_dict())
    assert share_a_start([network, near(network, 0)], (0.5, 0.5), images)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_such_parents_are_averaged_and_not_refitted(images):
    parents = [near(load_network(FIRST), seed, 0.05) for seed in range(2)]
    result = fuse(parents, Recipe(), images)
    assert result.recipe.refit.name == "none"
    assert "share a start" in result.refit_reason
    data = load_data("digits")
    test = Loader(data.test, data.preprocessing, batch_size=500)
    assert evaluate(result.child, test).accuracy >= min(evaluate(parent, test).accuracy for parent in parents) - 0.005
    assert fuse(parents, Recipe(refit="ridge", refit_steps=0), images).recipe.refit.name == "ridge"


def test_the_verdict_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    network = load_network(FIRST)
    for seed, name in enumerate("ab"):
        save_file(near(network, seed).state_dict(), tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    report = tmp_path / "report.json"
    arguments = ["fuse", *files, "--arch", "digits_resnet(width=1.25)", "--data", "digits", "--calibration", "400"]
    assert main([*arguments, "--out", str(tmp_path / "child.safetensors"), "--report", str(report)]) == 0
    found = FusionReport.model_validate_json(report.read_text())
    assert found.advice is not None
    assert found.advice.same_start is not None
    assert found.recipe["refit"]["name"] == "none"
    said = capsys.readouterr().out
    assert "Refit auto is none here: the parents share a start" in said
    assert "The parents share a start: " in said.splitlines()[-1]
