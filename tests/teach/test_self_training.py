"""Training a child on soft labels: its teacher's for image and mirror image, then those of both."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from digits_parents import small_files, small_parents
from torch import nn

from depfuse import Recipe, fuse
from depfuse.cli import main
from depfuse.data import DataSet, Loader, Split, calibration_loader, load_data
from depfuse.data.loader import calibration_order
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import CheckpointError, DepfuseWarning, RecipeError
from depfuse.evaluate import evaluate
from depfuse.fusion.verdict import self_training_notes
from depfuse.report import FusionReport
from depfuse.teach.distil import Distillation
from depfuse.teach.joint_head import HeadFit, with_joint_head
from depfuse.teach.self_training import balanced, known_share, predict
from depfuse.train import EpochReport, TrainRecipe, fit

FAST = {"preset": "fast", "calibration.images": 300}


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.fixture
def parents() -> list[nn.Module]:
    return small_parents()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.double().reshape(-1) for tensor in model.state_dict().values()])


def test_the_geometric_mean_of_two_labels():
    teacher, child = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    both = ((teacher + child) / 2).softmax(1)
    torch.testing.assert_close(both, torch.tensor([[0.786, 0.214]]), atol=1e-3, rtol=0)


def test_balanced_labels_have_the_class_shares_that_are_wanted_and_keep_their_order_among_images():
    logarithms = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0.0, -1.0, 0.0])
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = balanced(logarithms, shares)
    torch.testing.assert_close(found.exp().mean(0), shares, atol=1e-4, rtol=0)
    shift = found - logarithms.log_softmax(1)
    relative = shift - shift[:, :1]  # the same bias for every image
    torch.testing.assert_close(relative, relative[:1].expand_as(relative), atol=1e-4, rtol=0)


def test_what_labels_tell_of_the_class_is_between_nothing_and_all():
    certain = torch.eye(4).clamp_min(1e-30).log()
    assert known_share(certain) == pytest.approx(1.0)
    assert known_share(torch.zeros(5, 4).log_softmax(1)) == pytest.approx(0.0, abs=1e-6)
    assert known_share(torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]).clamp_min(1e-30).log()) == pytest.approx(0.5)
    assert known_share(certain[:1].expand(5, 4)) == pytest.approx(0.0, abs=1e-6)


def test_a_teacher_that_knows_next_to_nothing_teaches_nothing(data):
    torch.manual_seed(0)
    untrained = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval() for _ in range(2)]
    student = copy.deepcopy(small_parents()[0])
    before, settings = weights(student), Recipe.create({"train.self_training": 4}).train
    teacher = Ensemble(untrained, (0.5, 0.5))
    with pytest.warns(DepfuseWarning, match="or that knows too little"):
        trained = Distillation(data).train(student, teacher, settings, seed=0, name="child", origin="")
    assert torch.equal(weights(student), before)
    assert not trained.self_training.kept
    assert trained.seconds["self_training"] == 0


class Left(nn.Module):
    """Scores of two classes: brightness of the left column, and of the right one."""

    def forward(self, images):
        return images[:, 0, :, [0, -1]].sum(1)


def test_labels_are_those_of_the_image_and_of_its_mirror_image():
    images = torch.tensor([[[[3.0, 1.0]]], [[[0.0, 0.5]]]])
    loader = Loader(Split(images), batch_size=1)
    plain = predict(Left(), loader).exp()
    torch.testing.assert_close(plain, images[:, 0, 0].softmax(1))
    # What a network says of the mirror image is the opposite, so that together it knows nothing.
    torch.testing.assert_close(predict(Left(), loader, mirrored=True).exp(), torch.full((2, 2), 0.5))


def test_the_ensembles_labels_are_its_probabilities(parents, data):
    loader = calibration_loader(data, 60)
    with torch.no_grad():
        outputs = [torch.cat([parent(images) for images, _ in loader]) for parent in parents]
    shared = predict(Ensemble(parents, (0.3, 0.7)), loader).exp()
    torch.testing.assert_close(shared, 0.3 * outputs[0].softmax(1) + 0.7 * outputs[1].softmax(1))
    joint = predict(Ensemble(parents, (0.3, 0.7), joint=True), loader).exp()
    torch.testing.assert_close(joint, (0.3 * outputs[0] + 0.7 * outputs[1]).softmax(1))


def test_one_head_for_image_and_mirror_image_does_not_depend_on_which_of_them_is_given(parents, data):
    loader = calibration_loader(data, 200)
    flipped = Loader(Split(loader.images.flip(-1)), loader.preprocessing, batch_size=200)

    def head(images, mirrored):
        return with_joint_head(parents, (0.5, 0.5), images, fit=HeadFit(mirrored=mirrored)).networks[0].linear.weight

    torch.testing.assert_close(head(flipped, True), head(loader, True), atol=1e-3, rtol=1e-3)
    assert (head(flipped, False) - head(loader, False)).abs().max() > 0.05
    assert (head(loader, True) - head(loader, False)).abs().max() > 0.05


def test_soft_labels_are_learned_in_place_of_labels(parents, data):
    """Those that are certain are labels; and labels of the data are not read."""
    recipe = TrainRecipe(epochs=1, batch_size=100, learning_rate=0.05, label_smoothing=0.0, seed=3)
    certain = nn.functional.one_hot(data.train.required_labels, 10).float()
    wrong = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=data.train.labels.flip(0)))
    students = [copy.deepcopy(parents[0]) for _ in range(2)]
    fit(students[0], data, recipe)
    report = fit(students[1], wrong, recipe, teacher=certain)
    torch.testing.assert_close(weights(students[1]), weights(students[0]), atol=1e-4, rtol=1e-3)
    assert report.taught
    assert 0.3 < report.accuracy < 1


def self_trained(parents, data, passes: int, **own):
    recipe = Recipe.create({**FAST, "train.self_training": passes, **own})
    return fuse(parents, recipe, calibration_loader(data, 300), training=Distillation(data))


def test_a_child_gets_better_without_labels_and_says_so(parents, data):
    test = Loader(data.test, data.preprocessing, batch_size=500)
    unlabelled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=None))
    before = fuse(parents, FAST, calibration_loader(data, 300)).child
    result = self_trained(parents, unlabelled, 6)
    assert evaluate(result.child, test).accuracy > evaluate(before, test).accuracy + 0.05
    step = result.self_trained
    assert step.kept
    assert step.after < step.before
    assert step.alike_after > step.alike_before
    assert step.images == 81  # a sixteenth of 1297
    assert result.seconds["self_training"] > 0
    assert "train self_training kept" in repr(result)
    assert self_training_notes(True)[0] in result.comparison(test).verdict
    assert self_training_notes(True)[0] in result.comparison(Loader(Split(test.images), batch_size=500)).verdict
    with pytest.raises(RecipeError, match="self_training 6"):
        result.at((0.4, 0.6))


def test_a_network_that_comes_no_nearer_stays_as_it_was(parents, data):
    """Nothing is nearer to a network than itself."""
    student, teacher = copy.deepcopy(parents[0]), Ensemble(parents[:1], (1.0,))
    settings = Recipe.create({"train.self_training": 1}).train
    with pytest.warns(DepfuseWarning, match="child came no nearer to its teacher in 1 passes of self-training"):
        trained = Distillation(data).train(student, teacher, settings, seed=0, name="child", origin="")
    assert torch.equal(weights(student), weights(parents[0]))
    assert not trained.self_training.kept
    assert trained.self_training.alike_before == trained.self_training.images
    assert "not kept" in self_training_notes(False)[0]
    assert self_training_notes(None) == []


def test_images_that_tell_whether_it_came_nearer_are_not_trained_on(parents, data):
    settings, changed = Recipe.create({"train.self_training": 2}).train, data.train.images.clone()
    changed[calibration_order(len(data.train), 0)[-81:]] = 0  # the last that calibration draws
    students = []
    for images in (data.train.images, changed):
        student = copy.deepcopy(parents[0])
        other = dataclasses.replace(data, train=dataclasses.replace(data.train, images=images))
        Distillation(other).train(student, Ensemble(parents, (0.5, 0.5)), settings, seed=0, name="child", origin="")
        students.append(student)
    assert torch.equal(weights(students[0]), weights(students[1]))


def test_a_self_training_that_was_cut_off_goes_on_bit_for_bit(parents, data, tmp_path):
    """In its first round, between the rounds, and in the second."""
    few = dataclasses.replace(data, train=data.train.take(torch.arange(400)))
    recipe = Recipe.create({**FAST, "train.self_training": 4})
    count: list[int] = []

    def child(path: Path | None, last: int) -> torch.Tensor:
        def progress(_: str, report: EpochReport) -> None:
            count.append(report.epoch)
            if len(count) == last:
                raise KeyboardInterrupt

        training = Distillation(few, resume=path, progress=progress, save_seconds=0.0)
        return weights(fuse(parents, recipe, calibration_loader(few, 200), training=training).child)

    whole = child(None, 0)
    assert count == [1, 2, 1, 2]
    for stop in (1, 2, 3):
        count.clear()
        with pytest.raises(KeyboardInterrupt):
            child(tmp_path / f"state{stop}", stop)
        count.clear()
        assert torch.equal(child(tmp_path / f"state{stop}", 0), whole)
        assert len(count) == 4 - stop


@pytest.mark.filterwarnings("ignore:the child came no nearer")  # from so few images it need not
def test_labels_of_another_training_are_refused(parents, data, tmp_path):
    few = dataclasses.replace(data, train=data.train.take(torch.arange(200)))
    settings, teacher = Recipe.create({"train.self_training": 1}).train, Ensemble(parents, (0.5, 0.5))
    training = Distillation(few, resume=tmp_path / "state")
    training.train(copy.deepcopy(parents[0]), teacher, settings, seed=0, name="child", origin="one")
    with pytest.raises(CheckpointError, match="another network or seed"):
        training.train(copy.deepcopy(parents[0]), teacher, settings, seed=0, name="child", origin="another")
    training.delete_states()
    assert not list(tmp_path.iterdir())


def test_what_is_no_class_and_what_has_no_images_is_refused(parents, data):
    recipe = Recipe.create({**FAST, "train.self_training": 2})
    with pytest.raises(RecipeError, match="self_training and finetune need the training images"):
        fuse(parents, recipe, calibration_loader(data, 100))
    with pytest.raises(RecipeError, match=r"train\.self_training learns classes of images"):
        fuse(parents, recipe, calibration_loader(data, 100), training=Distillation(data), task="regression")


def test_the_command_line_reports_it_and_trains_a_parent_as_long(tmp_path, capsys):
    out, report = tmp_path / "child.safetensors", tmp_path / "report.json"
    arguments = ["fuse", *small_files(), "--data", "digits", "--preset", "fast", "--calibration", "300"]
    arguments += ["--set", "train.self_training=2", "--out", str(out), "--report", str(report)]
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Self-training brought the child nearer to its teacher" in said
    assert "trained as long" in said
    found = FusionReport.model_validate_json(report.read_text())
    assert found.self_training.kept
    assert found.seconds.self_training > 0
    assert json.loads(report.read_text())["recipe"]["train"]["self_training"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, report.name]
