"""Teachers of parents with different knowledge: renewed statistics, and one head over all features."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import nn

from depfuse import Recipe, fuse
from depfuse.checkpoint import Card, write_checkpoint
from depfuse.cli import main
from depfuse.data import Loader, calibration_loader, load_data, parse_labels, select_labels
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate, evaluate_ensemble
from depfuse.joint_head import _fitted, renewed, with_joint_head
from depfuse.label_sets import LabelSets
from depfuse.models import build_network
from depfuse.renorm import reset_batch_norm
from depfuse.train import TrainRecipe, fit

ARCHITECTURE = "digits_resnet(width=0.5, classes=5)"


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def halves(data):
    found = []
    for seed, labels in enumerate(("0-4", "5-9")):
        torch.manual_seed(seed)
        model = build_network(ARCHITECTURE)
        own, _ = select_labels(data, parse_labels(labels))
        fit(model, own, TrainRecipe(epochs=3, batch_size=64, learning_rate=0.1), device="cpu")
        found.append(model.eval())
    return found


def test_the_regression_is_the_optimum_that_scipy_finds():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (60,), generator=generator)
    weight, bias = _fitted(x, y, 3, 0.01)

    def loss(flat: np.ndarray) -> float:
        w, b = flat[:12].reshape(3, 4), flat[12:]
        scores = x.numpy() @ w.T + b
        return float((logsumexp(scores, axis=1) - scores[np.arange(60), y.numpy()]).mean() + 0.005 * (w**2).sum())

    best = minimize(loss, np.zeros(15), method="BFGS", options={"gtol": 1e-8})
    found = np.concatenate([weight.numpy().reshape(-1), bias.numpy()])
    assert loss(found) == pytest.approx(best.fun, abs=1e-5)
    assert np.allclose(weight.numpy(), best.x[:12].reshape(3, 4), atol=1e-2)


def test_one_head_fits_the_labels_better_than_heads_side_by_side(halves, data):
    before = [copy.deepcopy(model.state_dict()) for model in halves]
    calibration = calibration_loader(data, 500)
    sets = LabelSets.create([range(5), range(5, 10)])
    shares = (0.4, 0.6)
    teachers = with_joint_head(
        renewed(halves, calibration), shares, calibration.first(200), sets, build_network("digits_resnet(width=0.5)")
    )
    test = Loader(data.test, data.preprocessing, batch_size=500)
    with torch.no_grad():
        images = next(iter(test))[0]
        joint = sets.join([model(images) for model in halves], (0.5, 0.5), 1)
    beside = float((joint.argmax(1) == data.test.labels[: len(images)]).float().mean())
    assert evaluate_ensemble(teachers, test, shares).accuracy > max(beside, 0.9)
    for model, state in zip(halves, before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_a_parent_without_a_share_has_no_say(halves, data):
    calibration = calibration_loader(data, 200)
    sets = LabelSets.create([range(5), range(5, 10)])
    teachers = with_joint_head(halves, (0.0, 1.0), calibration, sets, build_network("digits_resnet(width=0.5)"))
    heads = [[m for m in model.modules() if isinstance(m, nn.Linear)][-1] for model in teachers]
    assert not heads[0].weight.any()
    assert heads[1].weight.any()


def test_the_child_of_halves_learns_from_labelled_images(halves, data):
    calibration = calibration_loader(data, 800)
    test = Loader(data.test, data.preprocessing, batch_size=500)
    labels = [range(5), range(5, 10)]
    template = build_network("digits_resnet(width=0.5)")
    found = [
        fuse(halves, Recipe(refit="ridge", labelled=number), calibration, labels=labels, template=template)
        for number in (0, 300)
    ]
    assert [result.joint for result in found] == [False, True]
    assert found[1].labels is None
    without, with_labels = (evaluate(result.child, test).accuracy for result in found)
    assert with_labels > without
    other = calibration_loader(data, 800)
    other.labels = other.labels.flip(0)  # no label is read unless it is asked for
    again = fuse(halves, Recipe(refit="ridge"), other, labels=labels, template=template)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found[0].child.state_dict().values(), again.child.state_dict().values(), strict=True)
    )


def test_statistics_are_renewed_where_labels_differ_or_it_is_asked_for(halves, data):
    calibration = calibration_loader(data, 300)
    wanted = copy.deepcopy(halves[0])
    reset_batch_norm(wanted, calibration)
    template = build_network("digits_resnet(width=0.5)")
    different = {"labels": [range(5), range(5, 10)], "template": template}

    def first_teacher(setting: str, **options: object) -> nn.Module:
        recipe = Recipe(criterion="weights", parents_renorm=setting)
        return fuse(halves, recipe, calibration, **options).teachers[0]  # type: ignore[arg-type]

    def same(a: nn.Module, b: nn.Module) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

    assert same(first_teacher("auto", **different), wanted)
    assert same(first_teacher("reset"), wanted)
    assert first_teacher("auto") is halves[0]
    assert first_teacher("none", **different) is halves[0]


def test_refusals(halves, data):
    calibration = calibration_loader(data, 300)
    with pytest.raises(RecipeError, match="labelled 500 is more than the 100 calibration images"):
        Recipe.create(labelled=500, calibration=100)
    with pytest.raises(RecipeError, match="3 labelled images are too few"):
        with_joint_head(halves, (0.5, 0.5), calibration.first(3))
    with pytest.raises(RecipeError, match="the data have the label 9, but the parents know 5 labels"):
        with_joint_head(halves, (0.5, 0.5), calibration)
    with pytest.raises(RecipeError, match="need calibration images"):
        fuse(halves, Recipe(criterion="weights", labelled=50), None, example=data.example())
    convolutional = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(RecipeError, match="not in Conv2d: leave out --labelled"):
        with_joint_head([convolutional, convolutional], (0.5, 0.5), calibration)


def test_on_the_command_line(halves, tmp_path: Path):
    paths = []
    for model, labels in zip(halves, (range(5), range(5, 10)), strict=True):
        path = tmp_path / f"{labels[0]}.safetensors"
        write_checkpoint(
            path, model.state_dict(), Card(architecture=ARCHITECTURE, data="digits", classes=tuple(labels))
        )
        paths.append(str(path))
    report = tmp_path / "report.json"
    command = ["fuse", *paths, "--refit", "ridge", "--calibration", "600", "--labelled", "200", "-q"]
    assert main([*command, "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["teacher"]["accuracy"] > found["ensemble"]["accuracy"]
    assert found["child"]["accuracy"] > max(parent["accuracy"] for parent in found["parents"]) + 0.2
    assert main([*command, "--labelled", "700"]) == 2
