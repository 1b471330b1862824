"""Teachers of parents with different knowledge: renewed statistics, and one head over all features."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from depfuse import Recipe, find_groups, fuse
from depfuse.cli import main
from depfuse.data import Loader, Split, calibration_loader, load_data, parse_labels, select_labels
from depfuse.ensemble.distance import at_best_scale
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import mean_logits
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate, evaluate_ensemble, evaluate_with_ensemble
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.fusion.parents import Parents
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.io.into_network import load_network
from depfuse.models import build_network
from depfuse.renorm import reset_batch_norm
from depfuse.teach.heads import head_of, head_weight, heads_side_by_side, reweight_heads, set_joint_head
from depfuse.teach.joint_head import (
    Read,
    can_have_joint_head,
    knowledge_differs,
    renewed,
    with_joint_head,
)
from depfuse.teach.teachers import prepare_teachers
from depfuse.train import TrainRecipe, fit

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
ARCHITECTURE = "digits_resnet(width=0.5, classes=5)"


def same_tensors(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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


@pytest.mark.parametrize("labelled", [0, 200])
def test_one_head_tells_labels_apart_better_than_heads_side_by_side(halves, data, labelled):
    before = [copy.deepcopy(model.state_dict()) for model in halves]
    calibration = calibration_loader(data, 800)
    sets = LabelSets.create([range(5), range(5, 10)])
    shares = (0.4, 0.6)
    fresh = renewed(halves, calibration)
    teachers = with_joint_head(
        fresh,
        shares,
        calibration,
        Read(labelled) if labelled else None,
        sets,
        build_network("digits_resnet(width=0.5)"),
    ).networks
    test = Loader(data.test, data.preprocessing, batch_size=500)
    beside, joint = evaluate_with_ensemble(fresh, test, shares, sets)[1], evaluate_ensemble(teachers, test, shares)
    assert joint.accuracy > beside.accuracy
    assert joint.loss < beside.loss
    for model, state in zip(halves, before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(("head", "joint"), [("auto", False), ("always", True)])
def test_a_head_that_the_images_do_not_tell_is_taken_only_where_it_is_asked_for(halves, data, head, joint):
    shape = (400, *data.train.images.shape[1:])
    noise = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = Loader(Split(noise, None), data.preprocessing, batch_size=200)
    fresh = [build_network(ARCHITECTURE).eval() for _ in halves]
    sets = LabelSets.create([range(5), range(5, 10)])
    parents, settings = Ensemble(fresh, (0.5, 0.5), sets), Recipe.create({"teach.head": head}).teach
    found = prepare_teachers(parents, settings, images, images, build_network("digits_resnet(width=0.5)"), learns=True)
    assert found.joint is joint
    assert ("alike" in found.note) is not joint
    assert found.renewed
    given = Parents(fresh, labels=sets.sets, template=build_network("digits_resnet(width=0.5)"))
    result = fuse(given, Recipe.create({"teach.head": head, "refit": "ridge", "refit.steps": 0}), images)
    assert (result.joint, "alike" in result.teaching) == (joint, not joint)
    assert result.recipe.teach.head == ("always" if joint else "none")


def test_the_heads_together_are_the_classifier_that_they_were_given(halves, data):
    images, shares = data.example(200), (0.3, 0.7)
    sets = LabelSets.create([range(5), range(5, 10)])
    template = build_network("digits_resnet(width=0.5)")
    teachers = with_joint_head(halves, shares, calibration_loader(data, 200), None, sets, template).networks
    heads, features = [head_of(model, images[:1]) for model in teachers], []
    for head in heads:
        head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    whole = []
    for model, half in zip(teachers, halves, strict=True):
        own = head_of(half, images[:1])
        labels = slice(0, 5) if half is halves[0] else slice(5, 10)
        whole.append(nn.Linear(own.in_features, 10))
        with torch.no_grad():
            model(images)
            whole[-1].weight.zero_()
            whole[-1].bias.zero_()
            whole[-1].weight[labels], whole[-1].bias[labels] = own.weight, own.bias
    with torch.no_grad():
        weight, bias = heads_side_by_side(whole, shares, sets)
        scores = sets.join([model(images) for model in halves], shares, 1)
        assert torch.allclose(torch.cat(features, 1) @ weight.T + bias, scores, atol=1e-4)
        weight, bias = torch.randn(weight.shape), torch.randn(bias.shape)
        set_joint_head(heads, shares, weight, bias)
        joint = mean_logits([model(images) for model in teachers], shares)
        assert torch.allclose(joint, torch.cat(features[:2], 1) @ weight.T + bias, atol=1e-4)


def test_a_parent_without_a_share_has_no_say(halves, data):
    calibration = calibration_loader(data, 200)
    sets = LabelSets.create([range(5), range(5, 10)])
    teachers = with_joint_head(
        halves, (0.0, 1.0), calibration, Read(100), sets, build_network("digits_resnet(width=0.5)")
    ).networks
    heads = [[m for m in model.modules() if isinstance(m, nn.Linear)][-1] for model in teachers]
    assert not heads[0].weight.any()
    assert heads[1].weight.any()


def test_at_other_shares_the_one_head_stays_what_it_is(data):
    parents = [load_network(CHECKPOINTS / f"digits-{name}.safetensors") for name in "ab"]
    test = Loader(data.test, data.preprocessing, batch_size=500)
    result = fuse(parents, Recipe(refit="ridge", refit_steps=0, seed=1), calibration_loader(data, 300))
    images = data.example(50)
    weight = head_weight(result.teachers[0], images[:1])
    anew = reweight_heads(result.teachers, [weight], (0.5, 0.5), (0.2, 0.8))
    with torch.no_grad():
        before = mean_logits([model(images) for model in result.teachers], (0.5, 0.5))
        torch.testing.assert_close(mean_logits([model(images) for model in anew], (0.2, 0.8)), before)
    same = result.at(result.shares).state_dict()
    assert all(torch.equal(tensor, same[key]) for key, tensor in result.child.state_dict().items())
    assert evaluate(result.at((0.3, 0.7)), test).accuracy > 0.9


def test_which_parents_know_different_things(data):
    calibration = calibration_loader(data, 400)
    loaded = {name: load_network(CHECKPOINTS / f"digits-{name}.safetensors") for name in ("a", "b", "same-a", "same-b")}
    assert knowledge_differs([loaded["a"], loaded["b"]], calibration)
    assert not knowledge_differs([loaded["same-a"], loaded["same-b"]], calibration)
    assert knowledge_differs([loaded["same-a"], loaded["a"], loaded["b"]], calibration)


@pytest.mark.parametrize(
    ("names", "settings", "joint", "changed"),
    [
        ("a b", {"refit": "ridge", "refit_steps": 0}, True, True),
        ("a b", {"refit": "none"}, False, False),
        ("a b", {"refit": "ridge", "refit_steps": 0, "joint_head": "none"}, False, True),
        ("a b", {"joint_head": "always", "refit_steps": 2}, True, True),
        ("same-a same-b", {"refit": "ridge", "refit_steps": 0}, False, False),
        ("same-a same-b", {"labelled": 20, "refit_steps": 2}, True, True),
    ],
)
def test_where_parents_have_one_head(data, names, settings, joint, changed):
    parents = [load_network(CHECKPOINTS / f"digits-{name}.safetensors") for name in names.split()]
    result = fuse(parents, Recipe(criterion="weights", restarts=1, **settings), calibration_loader(data, 200))
    assert result.joint is joint
    assert (not same_tensors(result.teachers[0], parents[0])) is changed


def test_matchings_are_judged_by_what_the_one_head_says(halves, data):
    calibration = calibration_loader(data, 200)
    sets = LabelSets.create([range(5), range(5, 10)])
    template = build_network("digits_resnet(width=0.5)")
    teachers = with_joint_head(halves, (0.5, 0.5), calibration, None, sets, template).networks
    groups = find_groups(teachers[0], data.example())
    child = copy.deepcopy(teachers[0])
    judge = EnsembleJudge(
        Ensemble(teachers, (), joint=True), groups, "none", CalibrationSplit.for_matchings(calibration)
    )
    with torch.no_grad():
        wanted = torch.cat([mean_logits([m(x) for m in teachers], (0.5, 0.5)).softmax(1) for x, _ in calibration])
        scores = torch.cat([child(x) for x, _ in calibration])
    by_hand = float(at_best_scale(scores, wanted)[0].mean())
    assert judge.of_child(child, (0.5, 0.5)) == pytest.approx(by_hand, abs=1e-5)
    separate = EnsembleJudge(Ensemble(teachers, ()), groups, "none", CalibrationSplit.for_matchings(calibration))
    apart = separate.of_child(child, (0.5, 0.5))
    assert abs(apart - by_hand) > 0.01


def test_too_few_images_for_a_head_leave_the_heads_as_they_are(halves, data):
    labels = LabelSets.create([range(5), range(5, 10)])
    assert can_have_joint_head(halves, calibration_loader(data, 100), labels)
    assert not can_have_joint_head(halves, calibration_loader(data, 99), labels)
    assert can_have_joint_head(halves, calibration_loader(data, 50))
    convolutional = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    assert not can_have_joint_head([halves[0], convolutional], calibration_loader(data, 500))


def test_the_child_of_halves_learns_from_labelled_images(halves, data):
    calibration = calibration_loader(data, 400)
    test = Loader(data.test, data.preprocessing, batch_size=500)
    labels = [range(5), range(5, 10)]
    template = build_network("digits_resnet(width=0.5)")
    found = [
        fuse(
            Parents(halves, labels=labels, template=template),
            Recipe(refit="ridge", refit_steps=8, labelled=number),
            calibration,
        )
        for number in (0, 200)
    ]
    assert all(result.joint and result.labels is None for result in found)
    without, with_labels = (evaluate(result.child, test).accuracy for result in found)
    assert with_labels > without
    other = calibration_loader(data, 400)
    other.labels = other.labels.flip(0)  # no label is read unless it is asked for
    again = fuse(Parents(halves, labels=labels, template=template), Recipe(refit="ridge", refit_steps=8), other)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found[0].child.state_dict().values(), again.child.state_dict().values(), strict=True)
    )


def test_statistics_are_renewed_where_labels_differ_or_it_is_asked_for(halves, data):
    calibration = calibration_loader(data, 300)
    wanted = copy.deepcopy(halves[0])
    reset_batch_norm(wanted, calibration)
    template = build_network("digits_resnet(width=0.5)")
    different = Parents(halves, labels=[range(5), range(5, 10)], template=template)

    def first_teacher(setting: str, parents: Sequence[nn.Module] | Parents) -> nn.Module:
        recipe = Recipe(refit="none", criterion="weights", parents_renorm=setting)
        return fuse(parents, recipe, calibration).teachers[0]

    assert same_tensors(first_teacher("auto", different), wanted)
    assert same_tensors(first_teacher("reset", halves), wanted)
    assert same_tensors(first_teacher("auto", halves), halves[0])
    assert same_tensors(first_teacher("none", different), halves[0])


def test_refusals(halves, data):
    calibration = calibration_loader(data, 300)
    with pytest.raises(RecipeError, match="labelled 500 is more than the 100 calibration images"):
        Recipe.create(labelled=500, calibration=100)
    with pytest.raises(RecipeError, match="labelled images are read for one head"):
        Recipe.create(labelled=5, joint_head="none")
    with pytest.raises(RecipeError, match="the data have the label 9, but the parents know 5 labels"):
        with_joint_head(halves, (0.5, 0.5), calibration, Read(300))
    with pytest.raises(RecipeError, match="need calibration images"):
        fuse(Parents(halves, example=data.example()), Recipe(refit="none", criterion="weights", labelled=50), None)
    convolutional = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(RecipeError, match=r"not in Conv2d: leave out teach.labelled and teach.head"):
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
    command = [
        "fuse",
        *paths,
        "--refit",
        "ridge",
        "--refit-steps",
        "8",
        "--calibration",
        "400",
        "--labelled",
        "200",
        "-q",
    ]
    assert main([*command, "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["teacher"]["accuracy"] > found["ensemble"]["accuracy"]
    assert found["child"]["accuracy"] > max(parent["accuracy"] for parent in found["parents"]) + 0.2
    assert main([*command, "--labelled", "700"]) == 2
