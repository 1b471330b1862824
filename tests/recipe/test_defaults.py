"""One default everywhere: what `refit auto` becomes, in Python and on the command line, and what options change."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from digits_parents import small_files, small_parents
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.cli import main
from depfuse.data import Loader, calibration_loader
from depfuse.errors import RecipeError
from depfuse.fusion.resolve import resolve_refit
from depfuse.io.checkpoint import read_checkpoint
from depfuse.models import build_network
from depfuse.networks.counting import multiply_adds


class Branching(nn.Module):
    """A convolutional network that looks at values: it cannot be taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 8)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.conv(images).flatten(1)
        return outputs if bool(outputs.sum() > 0) else -outputs


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


@pytest.fixture
def images(digits) -> Loader:
    return calibration_loader(digits, 50)


def pair(model: nn.Module) -> list[nn.Module]:
    """It and another one that was not trained from the same start."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.reset_parameters()
    return [model, other]


def resolved(model: nn.Module, images: Loader | None, **settings: object) -> tuple[str, str]:
    recipe, why = resolve_refit(Recipe.create(**settings), pair(model), model, images)
    return recipe.refit.name, why


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(1, 8, 3), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.conv(x).relu().mean((2, 3))
        return self.one(features), self.other(features)


@pytest.mark.parametrize(
    ("model", "refit", "why"),
    [
        (lambda: build_network("digits_resnet(width=0.5)"), "ridge", "with BatchNorm"),
        (plain, "ridge", "no normalisation"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "ridge", "best for networks with no normalisation"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 10)),
            "ridge",
            "best for convolutional networks with GroupNorm",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10)),
            "ridge",
            "best for networks with LayerNorm",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8)),
            "ridge",
            "best for convolutional networks with BatchNorm",
        ),
        (
            lambda: nn.Sequential(nn.Unflatten(2, (2, 4)), nn.Conv3d(1, 8, 2), nn.InstanceNorm3d(8)),
            "ridge",
            "best for convolutional networks with InstanceNorm3d",
        ),
        (lambda: nn.Sequential(nn.BatchNorm2d(1), nn.ReLU()), "none", "neither convolutions nor linear layers"),
        (lambda: nn.Conv2d(1, 8, 3), "ridge", "no normalisation"),
        (lambda: TwoHeads(), "none", "gives several outputs"),
        (Branching, "none", "cannot be taken apart"),
    ],
)
def test_networks_are_refitted_by_what_layers_they_have(images, model, refit, why):
    found = resolved(model().eval(), images)
    assert found[0] == refit
    assert why in found[1]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"solver": "sinkhorn"}, "no permutations"),
        ({"solver": "cca"}, "no permutations"),
        ({"renorm": "repair"}, "weights that are averaged"),
        ({"renorm": "data-free"}, "weights that are averaged"),
        ({"augment_statistics": True}, "calibration.augment"),
        ({"keep_worst": 1.0}, "no channels are merged"),
        ({"goal": "best"}, "refits its candidates"),
    ],
)
def test_what_contradicts_a_refit_is_named(images, settings, why):
    found = resolved(plain().eval(), images, **settings)
    assert found[0] == "none"
    assert why in found[1]


def test_without_images_nothing_is_refitted():
    assert resolved(plain(), None) == ("none", "refit auto is none here: there are no calibration images")


@pytest.mark.parametrize(("asked", "what"), [({"labelled": 5}, "labelled images"), ({"head": "always"}, "teach.head")])
def test_a_head_that_teaches_nobody_is_refused_where_the_refit_that_was_left_open_is_none(images, asked, what):
    recipe = Recipe(align={"solver": "sinkhorn"}, teach=asked)
    parents = pair(plain())
    with pytest.raises(RecipeError, match=f"{what} .* nothing teaches it .refit auto is none here: solver sinkhorn"):
        resolve_refit(recipe, parents, parents[0], images)
    assert resolve_refit(recipe.changed({"train.distil": 1}), parents, parents[0], images)[0].refit.name == "none"


def test_a_refit_that_is_named_stays(images):
    for refit in ("none", "ridge", "regmean"):
        assert resolved(plain(), images, refit=refit) == (refit, "")


@pytest.mark.parametrize(("channels", "large"), [(103, False), (104, True)])
def test_large_networks_are_not_refitted(images, channels, large):
    """Every channel takes 97 x 97 multiplications at each of 32 x 32 places: 104 are over 10^9, 103 are not."""
    network = nn.Sequential(nn.Upsample(size=128), nn.Conv2d(1, channels, 97), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    refit, why = resolved(network.eval(), images)
    assert ("multiply-adds for an image" in why) is large
    assert refit == "none" or not large


def test_multiplications_are_counted():
    assert multiply_adds(plain().eval(), torch.zeros(1, 1, 8, 8)) == 8 * 9 * 36 + 2880


def test_the_command_line_and_python_have_one_default(tmp_path: Path, capsys, digits):
    report, out = tmp_path / "report.json", tmp_path / "child.safetensors"
    command = ["fuse", *small_files(), "--data", "digits", "--calibration", "200", "--refit-steps", "4"]
    assert main([*command, "--report", str(report), "--out", str(out)]) == 0
    assert "\nRefit auto is ridge here" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["refit_reason"].startswith("refit auto is ridge here")
    assert found["recipe"]["refit"]["name"] == "ridge"
    result = fuse(small_parents(), Recipe(refit_steps=4), calibration_loader(digits, 200))
    assert result.recipe.refit.name == "ridge"
    written = read_checkpoint(out).state
    for key, tensor in result.child.state_dict().items():
        assert torch.equal(tensor, written[key]), key


@pytest.mark.parametrize(
    "settings",
    [
        {"align.criterion": "activations"},
        {"align.choose": "groups"},
        {"refit.steps": 0},
        {"refit.augment": False},
        {"renorm": "auto"},
        {"refit.targets": "matched"},
        {"merge.average": "fisher"},
        {"merge.weights": (0.4, 0.6)},
        {"align.criterion.distance": "pearson"},
        {"train.finetune": 1},
    ],
)
def test_a_setting_changes_what_it_names_and_nothing_else(images, settings):
    model = plain().eval()
    parents = pair(model)
    plainly = resolve_refit(Recipe(), parents, model, images)[0].settings
    typed = resolve_refit(Recipe(**settings), parents, model, images)[0].settings
    assert typed == {**plainly, **settings}


def test_parents_that_share_a_start_are_not_refitted_unless_the_user_says_how(images):
    model = plain().eval()
    recipe, why = resolve_refit(Recipe(), [model, model], model, images)
    assert recipe.refit.name == "none"
    assert "the parents share a start" in why
    assert resolve_refit(Recipe(refit_steps=8), [model, model], model, images)[0].refit.name == "ridge"
