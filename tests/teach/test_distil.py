"""Training a child on: the ensemble as a teacher, without labels and with them, and beside a parent."""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from digits_parents import SMALL_ARCHITECTURE, small_files, small_parents

from depfuse import Recipe, fuse
from depfuse.cli import main
from depfuse.data import DataSet, Loader, Split, calibration_loader, load_data
from depfuse.data.augment import mix
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import TEMPERATURE, ensemble_logits
from depfuse.errors import CheckpointError, DepfuseWarning, RecipeError
from depfuse.evaluate import evaluate
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.io.loading import load_network
from depfuse.models import build_network
from depfuse.refit.second_order import natural_gradient, training
from depfuse.refit.second_order.natural_gradient import TRUST, NaturalGradient
from depfuse.refit.second_order.rollback import Rollback
from depfuse.report import FusionReport
from depfuse.teach.distil import Distillation
from depfuse.train import EpochReport, Saving, TrainRecipe, fit

SMALL = ["--calibration", "200", "--refit", "ridge", "--refit-steps", "0"]
STEPS = TrainRecipe(epochs=3, label_smoothing=0.0, learning_rate=0.05)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.fixture
def parents() -> list[torch.nn.Module]:
    return small_parents()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_files(tmp_path_factory.mktemp("parents"))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.double().reshape(-1) for tensor in model.state_dict().values()])


def test_the_teacher_is_the_ensemble(parents, data):
    images = data.example(5)
    with torch.no_grad():
        outputs = [parent(images) for parent in parents]
    softened = [(output / TEMPERATURE).softmax(1) for output in outputs]
    found = (Ensemble(parents, (0.3, 0.7))(images) / TEMPERATURE).softmax(1)
    torch.testing.assert_close(found, 0.3 * softened[0] + 0.7 * softened[1])
    one_head = Ensemble(parents, (0.3, 0.7), joint=True)(images)
    torch.testing.assert_close(one_head, 0.3 * outputs[0] + 0.7 * outputs[1])
    sets = LabelSets.create([range(10), range(5, 15)])
    joint = Ensemble(parents, (0.5, 0.5), sets)(images)
    both = [torch.cat([outputs[0][:, :5], (outputs[0][:, 5:] + outputs[1][:, :5]) / 2, outputs[1][:, 5:]], 1)]
    torch.testing.assert_close(joint, both[0])
    digests = {
        Ensemble(models, shares).digest
        for models, shares in ((parents, (0.5, 0.5)), (parents, (0.4, 0.6)), (parents[::-1], (0.5, 0.5)))
    }
    assert len(digests) == 3


def test_streams_are_taught_where_the_parents_know_the_same(parents, data):
    class Listener:
        def images(self, device, seed):
            return calibration_loader(data, 200)

        def train(self, model, teacher, settings, *, session, **_):
            self.streams = 0 if session is None else len(session.streams.nodes)
            return {}

    streams = {}
    for name, settings, sets in (
        ("same", {"refit": "ridge", "refit_steps": 0, "joint_head": "none"}, None),
        ("averaged", {"refit": "none", "joint_head": "none"}, None),
        ("one head", {"refit": "ridge", "refit_steps": 0}, None),
        ("other labels", {"refit": "ridge", "refit_steps": 0, "joint_head": "none"}, [range(10), range(5, 15)]),
    ):
        training, template = (
            Listener(),
            None if sets is None else build_network("digits_resnet(width=0.5, classes=15)"),
        )
        recipe = Recipe(distil=1, calibration=200, **settings)
        fuse(parents, recipe, calibration_loader(data, 200), labels=sets, template=template, training=training)
        streams[name] = training.streams
    assert streams == {"same": 2, "averaged": 0, "one head": 0, "other labels": 0}


@pytest.mark.parametrize("labelled", [0, 50])
def test_training_finds_the_one_head_on_more_images(parents, data, labelled):
    heads = []
    for distil in (0, 1):
        recipe = Recipe(refit="ridge", refit_steps=0, calibration=200, labelled=labelled, distil=distil)
        result = fuse(parents, recipe, calibration_loader(data, 200), training=Distillation(data))
        heads.append(result.teachers[0].linear.weight)
    assert torch.equal(*heads) is (labelled > 0)  # labels are those of the calibration images


def test_the_ensemble_disagrees_least_with_itself(parents, data):
    loader = calibration_loader(data, 200)
    alone = EnsembleDistance(Ensemble(parents[:1], (1.0,)), loader)
    assert alone(parents[0]) < alone(parents[1])


def test_no_label_is_read_while_a_child_is_distilled(parents, data):
    teacher = Ensemble(parents, (0.5, 0.5))
    shuffled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=data.train.labels.flip(0)))
    students = []
    for images in (data, shuffled):
        student = copy.deepcopy(parents[0])
        fit(student, images, TrainRecipe(**{**STEPS.model_dump(), "epochs": 1}), teacher=teacher)
        students.append(student)
    assert torch.equal(weights(students[0]), weights(students[1]))
    assert not torch.equal(weights(students[0]), weights(parents[0]))


def test_distilling_brings_a_child_nearer_and_labels_make_it_better(parents, data):
    calibration, test = calibration_loader(data, 500), Loader(data.test, data.preprocessing, batch_size=500)
    teacher = Ensemble(parents, (0.5, 0.5))
    before = [weights(parent) for parent in parents]
    figures = []
    for distil, finetune in ((0, 0), (1, 0), (1, 4)):
        recipe = Recipe(refit="none", distil=distil, finetune=finetune, joint_head="none", parents_renorm="none")
        result = fuse(parents, recipe, calibration, training=Distillation(data))
        accuracy = evaluate(result.child, test).accuracy
        figures.append((EnsembleDistance(teacher, calibration)(result.child), accuracy))
        assert ("distil" in result.seconds, "finetune" in result.seconds) == (distil > 0, finetune > 0)
    assert figures[1][0] < figures[0][0]
    assert figures[2][1] > figures[1][1]
    for parent, kept in zip(parents, before, strict=True):
        assert torch.equal(weights(parent), kept)


@pytest.mark.parametrize(
    ("refit", "patient", "trust", "finishing", "images"),
    [
        pytest.param("none", 8, TRUST, 0.25, 300, marks=pytest.mark.slow),
        pytest.param("ridge", 8, TRUST, 0.25, 300, marks=pytest.mark.slow),
        ("ridge", 3, TRUST, 0.25, 300),
        pytest.param("none", 3, TRUST, 0.5, 300, marks=pytest.mark.slow),
        ("none", 8, 30.0, 0.25, 1297),
    ],
)
def test_a_distillation_that_was_cut_off_goes_on_bit_for_bit(
    parents, data, tmp_path, refit, patient, trust, finishing, images, monkeypatch
):
    """Also where the end of a long training has begun, and where steps are so long that some are taken back."""
    monkeypatch.setattr(natural_gradient, "TRUST", trust)
    monkeypatch.setattr(training, "FINISHING", finishing)
    monkeypatch.setattr("depfuse.teach.distil.Saving", partial(Saving, seconds=0))
    monkeypatch.setattr("depfuse.teach.distil.PATIENT_EPOCHS", patient)
    monkeypatch.setattr("depfuse.teach.distil.PATIENT_IMAGES", 0)
    few = dataclasses.replace(data, train=data.train.take(torch.arange(images)))
    recipe = Recipe(distil=3, refit=refit, calibration=200, **({} if refit == "none" else {"refit_steps": 0}))
    calibration = calibration_loader(few, 200)
    seen: list[int] = []

    def child(path: Path | None, stop: int) -> torch.Tensor:
        def progress(_: str, report: EpochReport) -> None:
            seen.append(report.epoch)
            if report.epoch == stop:
                raise KeyboardInterrupt

        training = Distillation(few, resume=path, progress=progress)
        return weights(fuse(parents, recipe, calibration, training=training).child)

    whole = child(None, 0)
    with pytest.raises(KeyboardInterrupt):
        child(tmp_path / "state", 2)
    seen.clear()
    assert torch.equal(child(tmp_path / "state", 0), whole)
    assert seen == [3]


def test_steps_that_are_far_too_long_are_taken_back(parents, data, monkeypatch):
    monkeypatch.setattr(natural_gradient, "TRUST", 100.0)
    teacher, calibration = Ensemble(parents, (0.5, 0.5)), calibration_loader(data, 500)
    student = copy.deepcopy(parents[0])
    Distillation(data).train(student, teacher, "child", Recipe(distil=3))
    assert EnsembleDistance(teacher, calibration)(student) < EnsembleDistance(teacher, calibration)(parents[0])
    monkeypatch.setattr(Rollback, "compare", lambda _: None)
    with pytest.warns(DepfuseWarning, match="no nearer"):
        Distillation(data).train(copy.deepcopy(parents[0]), teacher, "child", Recipe(distil=3))


def test_a_state_of_another_teacher_is_refused(parents, data, tmp_path):
    teacher, path = Ensemble(parents, (0.5, 0.5)), tmp_path / "state"
    fit(copy.deepcopy(parents[0]), data, STEPS, teacher=teacher, saving=Saving(path))
    with pytest.raises(CheckpointError, match="another teacher"):
        fit(copy.deepcopy(parents[0]), data, STEPS, teacher=Ensemble(parents, (0.4, 0.6)), saving=Saving(path))


def test_what_cannot_be_taken_apart_is_distilled_by_descent(parents, data):
    class Branching(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) if float(x.sum()) > -1e9 else x

    teacher, student = Ensemble(parents, (0.5, 0.5)), Branching(copy.deepcopy(parents[0])).eval()
    calibration = calibration_loader(data, 200)
    before = teacher.divergence(student, calibration)
    assert Distillation(data).train(student, teacher, "child", Recipe(distil=2))["distil"] > 0
    assert teacher.divergence(student, calibration) < before
    counted, parent = (int(model.bn1.num_batches_tracked) for model in (student.inner, parents[0]))
    assert counted > parent  # natural-gradient steps do not run BatchNorm on batches


def test_training_on_needs_images(parents, data):
    with pytest.raises(RecipeError, match="need the training images"):
        fuse(parents, Recipe(refit="none", distil=1), calibration_loader(data, 100))
    with pytest.raises(RecipeError, match="distil"):
        Recipe.create(distil=-1)


def test_the_command_line_compares_with_a_parent_trained_as_long(tmp_path, files, capsys):
    out, report = tmp_path / "child.safetensors", tmp_path / "report.json"
    arguments = ["fuse", *files, "--data", "digits", *SMALL, "--distil", "1", "--finetune", "1", "--out", str(out)]
    assert main([*arguments, "--report", str(report)]) == 0
    found = FusionReport.model_validate_json(report.read_text())
    assert found.trained_parent is not None
    assert found.trained_parent.path in files
    assert found.seconds.distil > 0
    assert found.seconds.finetune > 0
    assert "trained as long" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child.safetensors", "report.json"]
    assert json.loads(report.read_text())["recipe"]["train"]["distil"] == 1
    assert main([*arguments, "--plot", str(tmp_path / "path.png")]) == 2
    assert "leave out --plot" in capsys.readouterr().err


def test_the_parent_that_is_trained_as_long_can_be_kept(tmp_path, data, files, capsys):
    """Where the verdict says to keep it, there must be a file; it is the network whose scores the report has."""
    out, trained, report = tmp_path / "child.safetensors", tmp_path / "parent.safetensors", tmp_path / "report.json"
    arguments = ["fuse", *files, "--data", "digits", *SMALL, "--out", str(out), "--report", str(report)]
    assert main([*arguments, "--distil", "1", "--out-parent", str(trained)]) == 0
    assert f"The trained parent is in {trained}" in capsys.readouterr().out.replace("\n", "")
    found = FusionReport.model_validate_json(report.read_text()).trained_parent
    scores = evaluate(load_network(trained), Loader(data.test, data.preprocessing, batch_size=500))
    assert scores.accuracy == found.accuracy
    assert scores.loss == pytest.approx(found.loss, rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, trained.name, report.name]
    assert main(["fuse", *files, "--data", "digits", "--out-parent", str(trained)]) == 2
    assert "leave out --out-parent" in capsys.readouterr().err
    for wrong, sentence in ((out, "would overwrite"), (tmp_path / "parent.pt", "must end in .safetensors")):
        assert main([*arguments, "--distil", "1", "--out-parent", str(wrong)]) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")


def test_a_trained_parent_of_other_labels_is_kept_with_the_joint_head(tmp_path, data, capsys):
    paths = []
    for number, labels in enumerate((range(5), range(5, 10))):
        card = Card(architecture=SMALL_ARCHITECTURE, data="digits", classes=tuple(labels))
        state = build_network(SMALL_ARCHITECTURE, classes=5).state_dict()
        write_checkpoint(tmp_path / f"{number}.safetensors", state, card)
        paths.append(str(tmp_path / f"{number}.safetensors"))
    trained, report = tmp_path / "parent.safetensors", tmp_path / "report.json"
    child = str(tmp_path / "child.safetensors")
    arguments = ["fuse", *paths, "--data", "digits", "--distil", "1", "--out", child, "--out-parent", str(trained)]
    assert main([*arguments, "--calibration", "0", "--criterion", "weights", "--renorm", "data-free"]) == 0
    assert not trained.exists()
    assert "is not written: no parent could get a head" in " ".join(capsys.readouterr().err.split())
    arguments += ["--calibration", "300", "--refit", "ridge", "--refit-steps", "0", "--report", str(report)]
    assert main(arguments) == 0
    found = FusionReport.model_validate_json(report.read_text()).trained_parent
    scores = evaluate(load_network(trained), Loader(data.test, data.preprocessing, batch_size=500))
    assert scores.accuracy == found.accuracy


def test_a_state_belongs_to_what_a_network_comes_from_not_to_its_last_bits(parents, data, tmp_path):
    """Refitting with another number of threads, or on a GPU, gives the same network but for rounding."""
    teacher, recipe = Ensemble(parents, (0.5, 0.5)), Recipe(refit="none", distil=2)
    seen: list[int] = []

    def train(recipe: Recipe, change: float) -> torch.Tensor:
        network = copy.deepcopy(parents[0])
        with torch.no_grad():
            next(network.parameters()).mul_(1 + change)
        progress = lambda _, report: seen.append(report.epoch)  # noqa: E731
        Distillation(data, resume=tmp_path / "state", progress=progress).train(
            network, teacher, recipe.train, seed=recipe.seed, name="child", origin=recipe.model_dump_json()
        )
        return weights(network)

    whole = train(recipe, 0.0)
    assert torch.equal(train(recipe, 1e-6), whole)
    assert seen == [1, 2]
    with pytest.raises(CheckpointError, match="another"):
        train(Recipe(distil=2, refit="ridge"), 0.0)


@pytest.mark.parametrize(("epochs", "shift"), [(1, 0), (3, 0), (4, 1), (100, 1)])
def test_short_trainings_see_images_unshifted(parents, data, epochs, shift, monkeypatch):
    found = []
    monkeypatch.setattr("depfuse.teach.distil.fit", lambda model, images, recipe, **_: found.append(recipe) or Done())
    Distillation(data).train(copy.deepcopy(parents[0]), Ensemble(parents, (0.5, 0.5)), "child", Recipe(distil=epochs))
    assert [(recipe.epochs, recipe.translate, recipe.flip) for recipe in found] == [(epochs, shift, False)]


@pytest.mark.parametrize(("images", "share"), [(37_499, 0.7), (37_500, 0.28)])
def test_short_steps_are_taken_where_there_are_many(parents, data, images, share, monkeypatch):
    found = []
    monkeypatch.setattr("depfuse.teach.distil.fit", lambda *_, learner, **__: found.append(learner) or Done())
    many = torch.arange(images) % len(data.train)
    more = dataclasses.replace(data, train=Split(data.train.images[many], data.train.labels[many]))
    taken = []
    monkeypatch.setattr(NaturalGradient, "step", lambda self, batches, share, streams: taken.append(share))
    Distillation(more).train(copy.deepcopy(parents[0]), Ensemble(parents, (0.5, 0.5)), "child", Recipe(distil=8))
    size = found[0].batch_size(images)
    found[0].step(torch.zeros(size, *data.image_shape), torch.zeros(size), 0.05)
    assert taken == pytest.approx([share])


@pytest.mark.parametrize(
    ("patient", "mixed", "streams", "temperatures"),
    [(5, 0, [0.875, 0.625, 0.375, 0.125], [4.0] * 4), (4, 4, [0.875, 0.0, 0.0, 0.0], [4.0, 4.0, 4.0, 1.0])],
)
def test_long_trainings_mix_images_until_they_end_and_leave_the_streams_after_one_epoch(
    parents, data, patient, mixed, streams, temperatures, monkeypatch
):
    monkeypatch.setattr("depfuse.teach.distil.PATIENT_EPOCHS", patient)
    monkeypatch.setattr("depfuse.teach.distil.PATIENT_IMAGES", 0)
    few = dataclasses.replace(data, train=Split(data.train.images[:100], data.train.labels[:100]))
    mixes, taken, take, compared, distance = [], [], NaturalGradient.step, [], Ensemble.divergence

    def watched_mix(images, generator):
        mixes.append(len(images))
        return mix(images, generator)

    def watched_step(self, batches, share, streams):
        taken.append((streams, self.temperature))
        return take(self, batches, share, streams)

    def watched_distance(self, model, images, temperature):
        compared.append(temperature)
        return distance(self, model, images, temperature)

    monkeypatch.setattr("depfuse.refit.second_order.training.mix", watched_mix)
    monkeypatch.setattr(NaturalGradient, "step", watched_step)
    monkeypatch.setattr(Ensemble, "divergence", watched_distance)
    Distillation(few).train(copy.deepcopy(parents[0]), Ensemble(parents, (0.5, 0.5)), "child", Recipe(distil=4))
    assert len(mixes) == mixed  # of the steps before the end, and what they are compared on
    assert [share for share, _ in taken] == pytest.approx(streams)
    assert [temperature for _, temperature in taken] == temperatures
    assert compared == temperatures[-1:] * 2  # before and after: whether the network came nearer


def test_steps_at_another_temperature_are_measured_anew(parents, data, monkeypatch):
    """By the loss at that temperature, of images as they are."""
    monkeypatch.setattr("depfuse.teach.distil.PATIENT_EPOCHS", 4)
    monkeypatch.setattr("depfuse.teach.distil.PATIENT_IMAGES", 0)
    few = dataclasses.replace(data, train=Split(data.train.images[:100], data.train.labels[:100]))
    begun, losses, begin, take = {}, [], NaturalGradient.begin, NaturalGradient.step

    def watched_begin(self, loss):
        begun[len(losses)] = loss
        begin(self, loss)

    def watched_step(self, batches, share, streams):
        loss, alike = take(self, batches, share, streams)
        with torch.no_grad():
            given = ensemble_logits([parent(batches[0][0]) for parent in parents], (0.5, 0.5), None, self.temperature)
        torch.testing.assert_close(batches[0][1], given, atol=0.05, rtol=0.05)
        losses.append(float(loss) / sum(len(images) for images, *_ in batches))
        return loss, alike

    monkeypatch.setattr(NaturalGradient, "begin", watched_begin)
    monkeypatch.setattr(NaturalGradient, "step", watched_step)
    Distillation(few).train(copy.deepcopy(parents[0]), Ensemble(parents, (0.5, 0.5)), "child", Recipe(distil=4))
    assert begun == pytest.approx({0: losses[0], 3: losses[3]}, rel=0.05)


class Done:
    total_seconds = 0.0


def test_a_network_that_came_no_nearer_stays_as_it_was(parents, data, monkeypatch):
    def worse(model, *_, **__):
        with torch.no_grad():
            next(model.parameters()).mul_(3)
        return Done()

    monkeypatch.setattr("depfuse.teach.distil.fit", worse)
    student, teacher = copy.deepcopy(parents[0]), Ensemble(parents, (0.5, 0.5))
    said = r"child came no nearer to the ensemble in 2 epochs .* lower train\.learning_rate 0\.05"
    with pytest.warns(DepfuseWarning, match=said):
        Distillation(data).train(student, teacher, "child", Recipe(distil=2))
    assert torch.equal(weights(student), weights(parents[0]))
