"""On a GPU: the same children as on the CPU, up to rounding, by every recipe and step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from digits_parents import digits_parents

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.data import DataSet, Loader, calibration_loader
from depfuse.evaluate import Scores, evaluate
from depfuse.fusion.parents import Parents
from depfuse.models import build_network
from depfuse.recipe.presets import preset, published
from depfuse.teach.distil import Distillation
from depfuse.train import TrainRecipe, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
IMAGES = 400
PLACES = ("cpu", "cuda")
SETTINGS = {
    "defaults": {},
    "weights": {"criterion": "weights"},
    "sinkhorn": {"solver": "sinkhorn", "regularisation": 0.1},
    "universe": {"universe": True},
    "kept apart": {"keep_worst": 0.2},
    "shares by stage": {"weights_by": "stage"},
    "fisher": {"average": "fisher"},
    "repair": {"renorm": "repair"},
    "rescale": {"renorm": "rescale"},
    "data-free": {"renorm": "data-free"},
    "ridge": {"refit": "ridge", "refit_steps": 0},
    "ridge, steps": {"refit": "ridge", "refit_steps": 8, "augment": False},
    "ridge, matched": {"refit": "ridge", "targets": "matched", "refit_steps": 0},
    "least-squares": {"refit": "least-squares"},
    "best": {"goal": "best", "refit_steps": 4},
    "distil": {"refit": "ridge", "refit_steps": 8, "distil": 1},
    "distil without refit": {"distil": 1},
    "finetune": {"finetune": 1},
}
ALIKE = 0.02  # of the accuracy: rounding decides between equal costs, and trainings drift apart
ALIKE_OF = {"c2m3": 0.05}  # its local optima lie further apart


def fused(recipe: Recipe, data: DataSet, device: str) -> Scores:
    parents = [parent.to(device) for parent in digits_parents(*"ab")]
    training = Distillation(data) if recipe.trains else None
    child = fuse(parents, recipe, calibration_loader(data, IMAGES, device=device), training=training).child
    assert {tensor.device.type for tensor in child.state_dict().values()} == {device}
    return evaluate(child, Loader(data.test, data.preprocessing, batch_size=100, device=device))


@pytest.mark.parametrize("name", [*SETTINGS, *published()])
def test_a_child_is_the_same_on_both(name: str, digits: DataSet) -> None:
    settings = SETTINGS.get(name)
    recipe = preset(name).recipe if settings is None else Recipe.create(**settings)
    on_cpu, on_gpu = (fused(recipe, digits, device) for device in PLACES)
    assert on_gpu.accuracy == pytest.approx(on_cpu.accuracy, abs=ALIKE_OF.get(name, ALIKE))


def test_different_labels(digits: DataSet) -> None:
    scores = []
    for device in PLACES:
        parents = [parent.to(device) for parent in digits_parents(*"ab")]
        template = build_network("digits_resnet(width=1.25, classes=15)").to(device)
        images = calibration_loader(digits, IMAGES, device=device)
        recipe = Recipe(refit="ridge", refit_steps=8)
        child = fuse(Parents(parents, labels=[range(10), range(5, 15)], template=template), recipe, images).child
        scores.append(evaluate(child, Loader(digits.test, digits.preprocessing, batch_size=100, device=device)))
    assert scores[1].accuracy == pytest.approx(scores[0].accuracy, abs=ALIKE)


def test_groups_are_proved() -> None:
    network, example = build_network("cifar_resnet18(width=0.25)").eval(), torch.randn(1, 3, 32, 32)
    found = []
    for device in PLACES:
        network, example = network.to(device), example.to(device)
        proved = prove_groups(network, find_groups(network, example), example)
        found.append([(group.name, group.size, group.fixed) for group in proved.groups])
    assert found[0] == found[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_training(digits: DataSet, compiled: bool, tmp_path: Path) -> None:
    recipe = TrainRecipe.suited_to(digits, epochs=4, compile=compiled, precision="bfloat16")
    network = build_network("digits_resnet(width=1.25)")
    metrics = train(network, digits, recipe, device="cuda", resume_path=tmp_path / "state", save_seconds=0)
    assert metrics["accuracy"] > 0.8
    again = build_network("digits_resnet(width=1.25)")
    again.load_state_dict(network.state_dict())
    assert evaluate(again.eval(), Loader(digits.test, digits.preprocessing, batch_size=100)).accuracy > 0.8
