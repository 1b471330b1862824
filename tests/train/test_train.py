from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from depfuse.data import DataSet, Preprocessing, Split, parse_labels, select_labels
from depfuse.data.stored_images import StoredImages
from depfuse.errors import CheckpointError, DataError, RecipeError
from depfuse.io.checkpoint import read_checkpoint, state_digest
from depfuse.models import build_network
from depfuse.train import EpochReport, TrainRecipe, train

QUICK = {"epochs": 4, "batch_size": 64, "warmup": 1.0, "translate": 1, "flip": False}


@pytest.fixture(scope="module")
def few(digits: DataSet) -> DataSet:
    return select_labels(digits, parse_labels("0-9:0.25"))[0]


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return build_network("digits_resnet(width=0.5)")


def test_a_network_learns(digits: DataSet) -> None:
    network = fresh()
    reports: list[EpochReport] = []
    metrics = train(network, digits, TrainRecipe.create(**{**QUICK, "epochs": 6}), progress=reports.append)
    assert metrics["accuracy"] > 0.95
    assert metrics.keys() == {"accuracy", "loss", "train_accuracy", "train_loss", "seconds"}
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1].loss < reports[0].loss
    assert not network.training


@pytest.mark.parametrize(
    "options", [{"schedule": "cosine"}, {"precision": "bfloat16"}, {"channels_last": False}, {"cutout": 2}]
)
def test_every_option_trains(few: DataSet, options: dict[str, object]) -> None:
    reports: list[EpochReport] = []
    train(fresh(), few, TrainRecipe.create(**QUICK, **options), progress=reports.append)
    assert reports[-1].loss < reports[0].loss


def test_the_same_seed_gives_the_same_network(few: DataSet) -> None:
    digests = []
    for seed in (0, 0, 1):
        network = fresh()
        train(network, few, TrainRecipe.create(**QUICK, seed=seed))
        digests.append(state_digest(network.state_dict()))
    assert digests[0] == digests[1] != digests[2]


class StoppedError(Exception):
    """The training was killed."""


@pytest.mark.parametrize("stop_after", [1, 3, 4])
@pytest.mark.parametrize("dropout", [False, True])
def test_resuming_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, few: DataSet, stop_after: int, dropout: bool
) -> None:
    def network() -> nn.Module:
        made = fresh()
        if dropout:
            made.linear = nn.Sequential(nn.Dropout(0.3), made.linear)
        return made

    def stop(report: EpochReport) -> None:
        if report.epoch == stop_after:
            raise StoppedError

    recipe = TrainRecipe.create(**QUICK)
    whole = network()
    metrics = train(whole, few, recipe)
    with pytest.raises(StoppedError):
        train(network(), few, recipe, resume_path=tmp_path / "state", progress=stop, save_seconds=0)
    resumed = network()
    torch.rand(3)  # another process has another generator state
    reports: list[EpochReport] = []
    again = train(resumed, few, recipe, resume_path=tmp_path / "state", progress=reports.append)
    assert [report.epoch for report in reports] == list(range(stop_after + 1, 5))
    assert state_digest(resumed.state_dict()) == state_digest(whole.state_dict())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in metrics.items() if k != "seconds"}


KILLED = """
import os, signal, sys, torch
from depfuse.data import load_data
from depfuse.models import build_network
from depfuse.train import TrainRecipe, train
torch.set_num_threads(1)
torch.manual_seed(0)
train(build_network("digits_resnet(width=0.5)"), load_data("digits"), TrainRecipe(epochs=3, batch_size=64),
      resume_path=sys.argv[1], save_seconds=0,
      progress=lambda report: os.kill(os.getpid(), signal.SIGKILL) if report.epoch == 2 else None)
"""


@pytest.mark.skipif(not hasattr(__import__("signal"), "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_goes_on_where_it_stood(tmp_path: Path, digits: DataSet) -> None:
    state = tmp_path / "state"
    done = subprocess.run([sys.executable, "-c", KILLED, str(state)], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    reports: list[EpochReport] = []
    train(fresh(), digits, TrainRecipe(epochs=3, batch_size=64), resume_path=state, progress=reports.append)
    assert [report.epoch for report in reports] == [3]


@pytest.mark.parametrize("other", ["recipe", "data", "network"])
def test_the_state_of_another_training_is_refused(tmp_path: Path, few: DataSet, other: str) -> None:
    recipe = TrainRecipe.create(**QUICK)
    train(fresh(), few, recipe, resume_path=tmp_path / "state")
    network, data = fresh(), few
    if other == "recipe":
        recipe = TrainRecipe.create(**{**QUICK, "learning_rate": 0.05})
    elif other == "data":
        data = select_labels(few, parse_labels("0-9:0.5"))[0]
    else:
        network = build_network("digits_resnet(width=0.5)")
    with pytest.raises(CheckpointError, match=f"state of a training with another .*{other}"):
        train(network, data, recipe, resume_path=tmp_path / "state")


def test_a_file_that_is_no_state_is_refused_and_kept(tmp_path: Path, few: DataSet) -> None:
    (tmp_path / "state").write_bytes(b"my thesis")
    with pytest.raises(CheckpointError, match="is not the state of a training"):
        train(fresh(), few, TrainRecipe.create(**QUICK), resume_path=tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == b"my thesis"


def test_a_disk_that_fills_loses_nothing(tmp_path: Path, few: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TrainRecipe.create(**QUICK)
    whole = fresh()
    train(whole, few, recipe)
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if (tmp_path / "state").exists():
            write(self, bytes(data)[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        train(fresh(), few, recipe, resume_path=tmp_path / "state", save_seconds=0)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    resumed = fresh()
    reports: list[EpochReport] = []
    train(resumed, few, recipe, resume_path=tmp_path / "state", progress=reports.append)
    assert [report.epoch for report in reports] == [2, 3, 4]
    assert state_digest(resumed.state_dict()) == state_digest(whole.state_dict())


def test_learning_rate_rises_then_falls_to_zero() -> None:
    for schedule in ("linear", "cosine"):
        recipe = TrainRecipe(epochs=10, warmup=2, learning_rate=0.4, schedule=schedule)
        rates = [recipe.learning_rate_at(epoch / 10) for epoch in range(101)]
        assert rates[0] == 0
        assert rates[10] == pytest.approx(0.2)
        assert max(rates) == rates[20] == pytest.approx(0.4)
        assert rates[60] == pytest.approx(0.2)
        assert rates[-1] == pytest.approx(0)
        assert rates[20:] == sorted(rates[20:], reverse=True)


def test_weight_decay_leaves_batch_norm_and_biases_alone(few: DataSet) -> None:
    network = fresh()
    for parameter in network.parameters():
        parameter.register_hook(torch.zeros_like)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    train(network, few, TrainRecipe.create(**{**QUICK, "epochs": 1, "weight_decay": 0.1}))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim == 1), name


def test_augmentation_suits_the_images(digits: DataSet) -> None:
    grey = TrainRecipe.suited_to(digits)
    assert (grey.flip, grey.translate) == (False, 1)
    colour = DataSet("c", ("a",), digits.train, digits.test, digits.preprocessing)
    object.__setattr__(
        colour, "train", type(digits.train)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2))
    )
    suited = TrainRecipe.suited_to(colour, flip=False)
    assert (suited.flip, suited.translate) == (False, 4)
    assert TrainRecipe.suited_to(colour).flip


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": -1}, "training setting epochs"),
        ({"learning_rate": 0}, "training setting learning_rate"),
        ({"schedule": "steps"}, "training setting schedule"),
        ({"epoch": 3}, "training setting epoch"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        TrainRecipe.create(**settings)


def test_images_that_do_not_fit_are_refused_before_training(digits: DataSet) -> None:
    with pytest.raises(DataError, match="do not fit ThinResNet"):
        train(build_network("resnet20(width=0.25)"), digits, TrainRecipe())
    with pytest.raises(DataError, match="has 5 outputs, but the labels name 10 classes"):
        train(build_network("digits_resnet(classes=5)"), digits, TrainRecipe())


def test_a_training_that_diverges_says_so(few: DataSet) -> None:
    network = fresh()
    with torch.no_grad():
        network.linear.weight.fill_(1e38)
    with pytest.raises(RecipeError, match="training diverged in epoch 1: lower learning_rate"):
        train(network, few, TrainRecipe.create(**QUICK, learning_rate=1e30))


def test_a_last_step_that_diverges_is_said(few: DataSet, tmp_path: Path) -> None:
    """The loss of an epoch is that before its steps: a network without numbers was written."""
    state = tmp_path / "state"
    for rate in (1e10, 1e38):
        one_step = {**QUICK, "epochs": 1, "batch_size": len(few.train), "learning_rate": rate, "warmup": 0.0}
        with pytest.raises(RecipeError, match="training diverged in epoch 1: lower learning_rate"):
            train(fresh(), few, TrainRecipe.create(**one_step), resume_path=state)
        assert not state.exists()  # with a lower rate it would be in the way


def test_no_epochs_only_evaluate(few: DataSet) -> None:
    network = fresh()
    before = state_digest(network.state_dict())
    metrics = train(network, few, TrainRecipe(epochs=0))
    assert state_digest(network.state_dict()) == before
    assert 0 <= metrics["accuracy"] < 0.5


@pytest.mark.slow
def test_the_script_makes_the_shipped_digits_parents(tmp_path: Path, digits: DataSet) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "experiments", "run", "train_digits", "--out", str(tmp_path), "--pairs", "1"]
    subprocess.run(command, check=True, cwd=root)
    for name in ("digits-a", "digits-b", "digits-same-a", "digits-same-b"):
        made, shipped = (read_checkpoint(folder / f"{name}.safetensors") for folder in (tmp_path, root / "checkpoints"))
        # Another processor may round otherwise, so that the weights differ but not what they reach.
        assert made.card.metrics["accuracy"] == pytest.approx(shipped.card.metrics["accuracy"], abs=0.1)
        assert made.card.recipe == shipped.card.recipe


class Generated(StoredImages):
    """Images that are made when they are asked for; remembers how many at once."""

    def __init__(self, count: int, size: int, asked: list[int]) -> None:
        self.shape, self.asked = (count, 1, size, size), asked

    @property
    def example(self) -> str:
        return "0.png"

    def take(self, index: slice | torch.Tensor) -> Generated:
        return Generated(len(torch.arange(len(self))[index]), self.shape[2], self.asked)

    def fill(self, images: torch.Tensor) -> None:
        self.asked.append(len(images))
        images.random_(generator=torch.Generator().manual_seed(0))


def test_training_images_are_decoded_once_and_test_images_batch_by_batch() -> None:
    for_training, for_tests = [], []
    labels = torch.arange(1100) % 2
    train_split = Split(Generated(540, 256, for_training), labels[:540])
    data = DataSet(
        "generated", ("a", "b"), train_split, Split(Generated(1100, 256, for_tests), labels), Preprocessing()
    )
    network = torch.nn.Sequential(torch.nn.AvgPool2d(64), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    train(network, data, TrainRecipe(epochs=1, batch_size=270))
    assert for_training.count(540) == 1
    assert sum(for_training) < 600
    assert max(for_tests) <= 500
    assert sum(for_tests) == 1100


def test_more_images_than_memory_holds_are_refused_before_the_training() -> None:
    labels = torch.arange(10**6) % 2
    many, few = (Split(Generated(count, 8000, []), labels[:count]) for count in (10**6, 4))
    data = DataSet("large", ("a", "b"), many, few, Preprocessing())
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    with pytest.raises(DataError, match=r"1,000,000 images as large as 0\.png need \d+\.\d GiB of memory, and"):
        train(network, data, TrainRecipe(epochs=1))
