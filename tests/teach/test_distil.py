"""Training a child on: the ensemble as a teacher, without labels and with them, and beside a parent."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from digits_parents import SMALL_ARCHITECTURE, small_files, small_parents

from depfuse import Recipe, fuse
from depfuse.cli import main
from depfuse.data import Augmentation, DataSet, Loader, calibration_loader, load_data
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import TEMPERATURE, ensemble_logits
from depfuse.errors import CheckpointError, DataError, DepfuseWarning, RecipeError
from depfuse.evaluate import evaluate
from depfuse.fusion.parents import Parents
from depfuse.io.cards import Card
from depfuse.io.checkpoint import state_digest, write_checkpoint
from depfuse.io.into_network import load_network
from depfuse.models import build_network
from depfuse.recipe.sections import Train
from depfuse.refit import NaturalGradientTraining, Schedule, Session
from depfuse.refit.second_order.natural_gradient import NaturalGradient
from depfuse.refit.second_order.second_pass import SecondPass
from depfuse.report import FusionReport
from depfuse.teach.distil import Distillation, Trained
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
def files() -> list[str]:
    return small_files()


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
    heard = []

    class Listener(Distillation):
        def images(self, device, seed):
            return calibration_loader(data, 200)

        def train(self, model, teacher, settings, *, session, **_):
            heard.append(0 if session is None else len(session.streams.nodes))
            return Trained({})

    streams = {}
    for name, settings, sets in (
        ("same", {"refit": "ridge", "refit_steps": 0, "joint_head": "none"}, None),
        ("averaged", {"refit": "none", "joint_head": "none"}, None),
        ("one head", {"refit": "ridge", "refit_steps": 0}, None),
        ("other labels", {"refit": "ridge", "refit_steps": 0, "joint_head": "none"}, [range(10), range(5, 15)]),
    ):
        template = None if sets is None else build_network("digits_resnet(width=0.5, classes=15)")
        recipe, few = Recipe(distil=1, calibration=200, **settings), calibration_loader(data, 200)
        fuse(Parents(parents, labels=sets, template=template), recipe, few, training=Listener(data))
        streams[name] = heard[-1]
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
    ("refit", "schedule", "images"),
    [
        pytest.param("none", Schedule(long_images=0), 600, marks=pytest.mark.slow),
        pytest.param("ridge", Schedule(long_images=0), 600, marks=pytest.mark.slow),
        ("ridge", Schedule(long_epochs=3, long_images=0), 600),
        pytest.param("none", Schedule(long_epochs=3, long_images=0, finishing=0.5), 600, marks=pytest.mark.slow),
        ("none", Schedule(trust=30.0), 1297),
    ],
)
def test_a_distillation_that_was_cut_off_goes_on_bit_for_bit(parents, data, tmp_path, refit, schedule, images):
    """Also where the end of a long training has begun, and where steps are so long that some are taken back."""
    few = dataclasses.replace(data, train=data.train.take(torch.arange(images)))
    recipe = Recipe(distil=3, refit=refit, calibration=200, **({} if refit == "none" else {"refit_steps": 0}))
    calibration = calibration_loader(few, 200)
    seen: list[int] = []

    def child(path: Path | None, stop: int) -> torch.Tensor:
        def progress(_: str, report: EpochReport) -> None:
            seen.append(report.epoch)
            if report.epoch == stop:
                raise KeyboardInterrupt

        training = Distillation(few, resume=path, progress=progress, save_seconds=0.0, schedule=schedule)
        return weights(fuse(parents, recipe, calibration, training=training).child)

    whole = child(None, 0)
    with pytest.raises(KeyboardInterrupt):
        child(tmp_path / "state", 2)
    seen.clear()
    assert torch.equal(child(tmp_path / "state", 0), whole)
    assert seen == [3]


def distilled(training: Distillation, student: torch.nn.Module, teacher: Ensemble, epochs: int, **own) -> float:
    """Train the student in place, and return the seconds."""
    return training.train(student, teacher, Train(distil=epochs, **own), seed=0, name="child", origin="").seconds[
        "distil"
    ]


def test_steps_that_are_far_too_long_are_taken_back(parents, data):
    teacher, calibration = Ensemble(parents, (0.5, 0.5)), calibration_loader(data, 500)
    student = copy.deepcopy(parents[0])
    distilled(Distillation(data, schedule=Schedule(trust=100.0)), student, teacher, 3)
    assert EnsembleDistance(teacher, calibration)(student) < EnsembleDistance(teacher, calibration)(parents[0])
    # Where none is taken back they lead away.
    learner = watched(parents, data, trust=100.0)[0]
    with torch.no_grad():
        batches = learner.with_targets([data.example(125)])
        before = learner.loss(batches)
        learner.begin(before / 125)
        for _ in range(5):
            learner.step(batches, 0.7)
        assert learner.loss(batches) > before


def test_a_state_of_another_teacher_is_refused(parents, data, tmp_path):
    teacher, path = Ensemble(parents, (0.5, 0.5)), tmp_path / "state"
    fit(copy.deepcopy(parents[0]), data, STEPS, teacher=teacher, saving=Saving(path))
    with pytest.raises(CheckpointError, match="another teacher"):
        fit(copy.deepcopy(parents[0]), data, STEPS, teacher=Ensemble(parents, (0.4, 0.6)), saving=Saving(path))


class Branching(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if float(x.sum()) > -1e9 else x


def test_what_cannot_be_taken_apart_is_distilled_by_descent(parents, data):
    teacher, student = Ensemble(parents, (0.5, 0.5)), Branching(copy.deepcopy(parents[0])).eval()
    calibration = calibration_loader(data, 200)
    before = teacher.divergence(student, calibration)
    assert distilled(Distillation(data), student, teacher, 2) > 0
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
def test_short_trainings_see_images_unshifted(parents, data, epochs, shift):
    recipe = Distillation(data).train_recipe(epochs, 0.05, 0, watched(parents, data)[1])
    assert (recipe.epochs, recipe.translate, recipe.flip) == (epochs, shift, False)


def test_trainings_of_many_epochs_and_images_are_long():
    assert [Schedule().patience(8, images) for images in (37_499, 37_500)] == [0, 8]
    assert [Schedule().patience(epochs, 1_000_000) for epochs in (7, 9)] == [0, 9]


class Watched(NaturalGradient):
    """Keeps what it is given and asked for."""

    def __init__(self, *given, **settings):
        super().__init__(*given, **settings)
        self.begun_with, self.losses, self.taken, self.targets = {}, [], [], []

    def begin(self, loss):
        self.begun_with[len(self.losses)] = loss
        super().begin(loss)

    def step(self, batches, share, streams=1.0):
        self.taken.append((share, streams, self.temperature))
        self.targets.append((batches[0][0], batches[0][1], self.temperature))
        loss, alike = super().step(batches, share, streams)
        self.losses.append(float(loss) / sum(len(images) for images, *_ in batches))
        return loss, alike


def watched(parents, data, patient: int = 0, **settings) -> tuple[Watched, NaturalGradientTraining]:
    """Prepare steps of the first parent towards the ensemble, and the training that takes them."""
    images = calibration_loader(data, 250)
    session = Session.towards(copy.deepcopy(parents[0]), Ensemble(parents, (0.5, 0.5)), images)
    own, generator = session.decomposed, torch.Generator().manual_seed(0)
    learner = Watched(session.folded, own.state, session.teacher, session.streams, generator, **settings)
    compared = [data.example(own.size)]
    return learner, NaturalGradientTraining(learner, own.size, compared, own.renew_statistics, patient=patient)


def trained_by(training: NaturalGradientTraining, parents, data) -> None:
    """Take four epochs of one step."""
    size = len(data.train)
    recipe = TrainRecipe(epochs=4, batch_size=size, learning_rate=0.05, warmup=0.0, label_smoothing=0.0)
    fit(copy.deepcopy(parents[0]), data, recipe, teacher=Ensemble(parents, (0.5, 0.5)), learner=training)


@pytest.mark.parametrize(("count", "fewest"), [(30, 3), (60, 4), (100, 4), (125, 4)])
def test_few_images_are_several_steps_an_epoch(parents, data, count, fewest):
    few = dataclasses.replace(data, train=data.train.take(torch.arange(count)))
    session = Session.towards(copy.deepcopy(parents[0]), Ensemble(parents, (0.5, 0.5)), calibration_loader(few, count))
    learner = session.training(calibration_loader(few, count))
    recipe = Distillation(few).train_recipe(2, 0.05, 0, learner)
    assert count // recipe.batch_size >= fewest
    by_descent = Distillation(few).train_recipe(2, 0.05, 0, None)
    assert count // by_descent.batch_size >= fewest


@pytest.mark.parametrize(("count", "size", "step"), [(60, 10, 50), (250, 125, 125)])
def test_steps_on_few_images_run_a_network_on_all_of_them_at_once(parents, data, count, size, step):
    few = dataclasses.replace(data, train=data.train.take(torch.arange(count)))
    session = Session.towards(copy.deepcopy(parents[0]), Ensemble(parents, (0.5, 0.5)), calibration_loader(few, count))
    own, generator = session.decomposed, torch.Generator().manual_seed(0)
    assert (own.size, own.at_once) == (size, 125)
    learner = Watched(session.folded, own.state, session.teacher, session.streams, generator)
    SecondPass(learner, own.loader, Augmentation(), at_once=own.at_once).run(2)
    assert [len(images) for images, *_ in learner.targets] == [step, step]


@pytest.fixture
def few(data) -> DataSet:
    return dataclasses.replace(data, train=data.train.take(torch.arange(100)))


@pytest.mark.parametrize(
    ("patient", "length", "mixed", "streams", "temperatures"),
    [
        (0, 0.7, [False] * 4, [0.875, 0.625, 0.375, 0.125], [4.0] * 4),
        (4, 0.28, [True, True, True, False], [0.875, 0.0, 0.0, 0.0], [4.0, 4.0, 4.0, 1.0]),
    ],
)
def test_long_trainings_mix_images_until_they_end_and_leave_the_streams_after_one_epoch(
    parents, data, few, patient, length, mixed, streams, temperatures
):
    learner, training = watched(parents, few, patient)
    trained_by(training, parents, few)
    rates = [0.875, 0.625, 0.375, 0.125]  # of a cosine schedule, over the highest
    assert [taken[0] for taken in learner.taken] == pytest.approx([length * rate for rate in rates])
    assert [taken[1] for taken in learner.taken] == pytest.approx(streams)
    assert [taken[2] for taken in learner.taken] == temperatures
    assert training.last_temperature == temperatures[-1]
    known = few.example(100).flatten(1)
    nearest = [float(torch.cdist(images.flatten(1), known).min(1).values.max()) for images, *_ in learner.targets]
    assert [distance > 0.1 for distance in nearest] == mixed


def test_images_that_tell_whether_a_network_came_nearer_are_not_trained_on(parents, data):
    judged, trained = [], []

    class Asked(Ensemble):
        def divergence(self, model, images, temperature):
            judged.append(images)
            return super().divergence(model, images, temperature)

        def __call__(self, images, *arguments):
            trained.append(images)
            return super().__call__(images, *arguments)

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    recipe = Train(distil=1, learning_rate=0.01)
    Distillation(data).train(model, Asked(parents, (0.5, 0.5)), recipe, seed=0, name="child", origin="")
    assert [images.count for images in judged] == [81, 81]  # of 1297
    held = judged[0].images.flatten(1)
    calibrated = calibration_loader(data, 1000).images.flatten(1)
    both = (held[:, None] == calibrated[None]).all(2).any()
    assert not both  # as long as calibration leaves any
    assert sum(len(images) for images in trained if len(images) > 81) >= 1297 - 81


@pytest.mark.filterwarnings("ignore:the child came no nearer")  # from so few images it need not
@pytest.mark.parametrize(("long_epochs", "temperature"), [(5, 4.0), (4, 1.0)])
def test_whether_a_network_came_nearer_is_judged_at_the_last_temperature(parents, data, long_epochs, temperature):
    compared = []
    few = dataclasses.replace(data, train=data.train.take(torch.arange(400)))

    class Asked(Ensemble):
        def divergence(self, model, images, temperature):
            compared.append(temperature)
            return super().divergence(model, images, temperature)

    training = Distillation(few, schedule=Schedule(long_epochs=long_epochs, long_images=0))
    distilled(training, copy.deepcopy(parents[0]), Asked(parents, (0.5, 0.5)), 4)
    assert compared == [temperature] * 2  # before and after


def test_steps_at_another_temperature_are_measured_anew(parents, few):
    """By the loss at that temperature, of images as they are."""
    learner, training = watched(parents, few, patient=4)
    trained_by(training, parents, few)
    for images, targets, temperature in learner.targets:
        with torch.no_grad():
            wanted = ensemble_logits([parent(images) for parent in parents], (0.5, 0.5), None, temperature)
        torch.testing.assert_close(targets, wanted, atol=0.05, rtol=0.05)
    assert learner.begun_with == pytest.approx({0: learner.losses[0], 3: learner.losses[3]}, rel=0.05)


def test_a_network_that_came_no_nearer_stays_as_it_was(parents, data):
    """By descent with a learning rate that is far too high."""
    student, teacher = Branching(copy.deepcopy(parents[0])).eval(), Ensemble(parents, (0.5, 0.5))
    before = weights(student)
    said = r"child came no nearer to the ensemble in 2 epochs .* lower train\.learning_rate 20"
    with pytest.warns(DepfuseWarning, match=said):
        distilled(Distillation(data), student, teacher, 2, learning_rate=20.0)
    assert torch.equal(weights(student), before)


def test_distillation_reads_no_label_and_needs_none(data: DataSet) -> None:
    few = dataclasses.replace(data, train=data.train.take(slice(0, 100)))
    unlabelled = dataclasses.replace(few, train=dataclasses.replace(few.train, labels=None))
    children = []
    for images in (few, unlabelled):
        loader = calibration_loader(images, 60)
        recipe = {"preset": "fast", "train.distil": 1}
        children.append(fuse(small_parents(), recipe, loader, training=Distillation(images)).child)
    assert state_digest(children[0].state_dict()) == state_digest(children[1].state_dict())
    with pytest.raises(DataError, match="labels are needed"):
        fit(small_parents()[0], unlabelled, TrainRecipe(epochs=1, batch_size=20))
