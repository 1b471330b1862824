"""Settings for families of networks: which network gets which, and what the command makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from digits_parents import digits_files
from torch import Tensor, nn

from depfuse import Recipe
from depfuse.cli import main
from depfuse.data import Loader, calibration_loader
from depfuse.families import NEUTRAL, family, family_for, multiply_adds, names
from depfuse.models import build_network


class Branching(nn.Module):
    """A convolutional network that looks at values: it cannot be taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 8)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.conv(images).flatten(1)
        return outputs if bool(outputs.sum() > 0) else -outputs


@pytest.fixture
def images(digits) -> Loader:
    return calibration_loader(digits, 50)


def test_every_family_has_settings_that_make_a_recipe():
    assert names() == ["batch-norm", "plain"]
    for name in names():
        found = family(name)
        recipe = Recipe.create(**found.settings)
        assert all(getattr(recipe, key) == value for key, value in found.settings.items())
        assert found.title
        assert found.found
    assert Recipe.model_fields.keys() > NEUTRAL


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: build_network("digits_resnet(width=0.5)"), "batch-norm"),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)), "plain"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), None),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 10)), None),
        (Branching, None),
    ],
)
def test_networks_belong_to_the_family_of_their_layers(images, model, name):
    found = family_for(model().eval(), images)
    assert (found and found.name) == name


def test_a_method_of_the_user_speaks_against_a_family(images):
    model = build_network("digits_resnet(width=0.5)")
    assert family_for(model, images, {"weights", "seed", "distil", "calibration"}) is not None
    assert family_for(model, images, {"weights", "refit"}) is None
    assert family_for(model, images, {"criterion"}) is None


def test_large_networks_are_of_no_family(images, monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.Flatten(), nn.Linear(288, 10)).eval()
    assert multiply_adds(model, torch.zeros(1, 1, 8, 8)) == 8 * 9 * 36 + 2880
    monkeypatch.setattr("depfuse.families.LARGEST", 8 * 9 * 36 + 2880)
    assert family_for(model, images) is not None
    monkeypatch.setattr("depfuse.families.LARGEST", 8 * 9 * 36 + 2879)
    assert family_for(model, images) is None


@pytest.mark.family
def test_the_command_takes_them_where_no_method_is_chosen(tmp_path: Path, capsys):
    def child(name: str, *options: str) -> tuple[dict, bytes]:
        report, out = tmp_path / f"{name}.json", tmp_path / f"{name}.safetensors"
        command = ["fuse", *digits_files("a", "b"), "--data", "digits", "--calibration", "200", *options]
        assert main([*command, "--report", str(report), "--out", str(out)]) == 0
        return json.loads(report.read_text()), out.read_bytes()

    suited, weights = child("suited", "--weights", "0.4,0.6")
    assert "Settings for convolutional networks with BatchNorm: --refit ridge" in capsys.readouterr().out
    assert suited["suited_to"] == "batch-norm"
    assert suited["recipe"].items() >= family("batch-norm").settings.items()
    assert suited["recipe"]["weights"] == [0.4, 0.6]
    again, same = child("again", "--recipe", str(tmp_path / "suited.json"))
    assert again["suited_to"] is None
    assert same == weights
    plain, _ = child("plain", "--refit", "none")
    assert plain["suited_to"] is None
    assert plain["recipe"]["refit"] == "none"
    assert plain["child"]["accuracy"] < suited["child"]["accuracy"]
    assert "Settings for" not in capsys.readouterr().out
