"""The zoo of parents: its entries are checked before any training, and a disk that fills loses nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from depfuse.errors import CheckpointError, RecipeError
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, write_checkpoint
from depfuse.models import build_network
from depfuse.train import TrainRecipe
from experiments.lib.parents import train_zoo as trainer
from experiments.lib.parents import zoo

SMALL = "architecture: digits_resnet(width=0.25), data: digits, seed: 0"


def written(folder: Path, text: str) -> Path:
    path = folder / "zoo.yaml"
    path.write_text(text)
    return path


# --- the entries -----------------------------------------------------------------------------------


def test_every_entry_of_the_zoo_is_sound(digits) -> None:
    entries = zoo.read_zoo()
    assert len(entries) >= 16
    assert entries["cifar100-resnet18-seed0"].recipe["epochs"] == 80
    assert zoo.IMAGES["digits"] == (digits.image_shape, len(digits.classes))
    assert zoo.IMAGES.keys() == set(zoo.DATA_SETS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: {architecture: x, data: digits, seed: 0, width: 3}}", r"zoo.yaml: a: there is no field 'width': choose"),
        (f"{{a: {{{SMALL}, label: 0-4}}}}", "a: there is no field 'label': did you mean labels"),
        ("{a: {architecture: x, seed: 0}}", "a: the field 'data' is missing"),
        ("{a: {architecture: x, data: imagenet, seed: 0}}", "a: data 'imagenet' is none of digits"),
        ("{a: {architecture: x, data: digits, seed: many}}", "a: seed: Input should be a valid integer"),
        (f"{{a: {{{SMALL}, labels: 0-4, share: {{number: 0, of: 2}}}}}}", "labels and share contradict each other"),
        (f"{{a: {{{SMALL}, share: {{number: 4, of: 4}}}}}}", "a: share: share 4 of 4 does not exist"),
        (f"{{a: {{{SMALL}, share: {{number: -1, of: 4}}}}}}", "a: share: number: Input should be greater"),
        (f"{{a: {{{SMALL}, share: {{number: 0, of: 4, alpha: 0}}}}}}", "a: share: alpha: Input should be greater"),
        (f"{{a: {{{SMALL}, share: {{number: 0, off: 4}}}}}}", "a: share: "),
        (f"{{a: {{{SMALL}, recipe: {{epoch: 3}}}}}}", "a: recipe: there is no field 'epoch': did you mean epochs"),
        (f"{{a: {{{SMALL}, recipe: {{epochs: -3}}}}}}", "a: training setting epochs: Input should be greater"),
        (f"{{a: {{{SMALL}, recipe: {{seed: 1}}}}}}", "a: recipe: the seed stands in the entry itself"),
        (f"{{a: {{{SMALL}, recipe: fast}}}}", "a: recipe: Input should be a valid dictionary"),
        (f"{{a: {{{SMALL}, labels: 4-0}}}}", "a: labels '4-0': 4-0 runs backwards"),
        (f"{{a: {{{SMALL}, labels: 5-12}}}}", "a: labels 5-12: digits has labels 0 to 9"),
        (f"{{a: {{{SMALL}, labels: 0-4}}}}", "has 10 outputs for 5 labels"),
        ("{a: {architecture: digits_resnets, data: digits, seed: 0}}", "a: .*digits_resnets"),
        ("{a: {architecture: cifar_resnet20, data: digits, seed: 0}}", "a: images of shape 1x8x8 do not fit"),
        (f"a: {{{SMALL}}}\na: {{{SMALL}}}", "line 2: a stands twice"),
        (f"a: {{{SMALL}, seed: 1}}", "line 1: seed stands twice"),
        ("a: {", "line 1: "),
        ("a: 3", "a: Input should be a valid dictionary"),
        ("", "zoo.yaml has no entries"),
    ],
)
def test_wrong_entries_are_named_before_any_training(tmp_path: Path, capsys, text: str, message: str) -> None:
    whole = f"good: {{{SMALL}}}\n{text}" if text.startswith("a:") and "line" not in message else text
    path = written(tmp_path, whole)
    with pytest.raises(RecipeError, match=message) as caught:
        zoo.read_zoo(path)
    assert trainer.main(["--zoo", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"{caught.value}\n"
    assert shown.err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["zoo.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar10-resnet18-seed9"], "cifar10-resnet18-seed9 is not in the zoo: did you mean cifar10-resnet18-seed"),
        (["nothing"], "nothing is not in the zoo: choose from cifar10-resnet20-classes0-4, "),
        (["--npz", "cifar1000=x"], "--npz cifar1000 is no data set: give one of digits"),
        (["--zoo", "absent.yaml"], "absent.yaml cannot be read: No such file"),
    ],
)
def test_a_wrong_request_gets_one_sentence(tmp_path: Path, capsys, arguments: list[str], message: str) -> None:
    assert trainer.main([*arguments, "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(message)
    assert shown.err.count("\n") == 1


# --- training --------------------------------------------------------------------------------------


def test_a_parent_is_trained_from_its_entry(tmp_path: Path, capsys) -> None:
    path = written(
        tmp_path,
        "a: {architecture: 'digits_resnet(width=0.25, classes=5)', data: digits, seed: 3, labels: 0-4,"
        " recipe: {epochs: 1}}",
    )
    options = ["--zoo", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert trainer.main([*options, "--list"]) == 0
    assert capsys.readouterr().out == "a: not trained\n"
    assert trainer.main(options) == 0
    assert capsys.readouterr().out.startswith("a: epoch 1 of 1, ")
    found = read_checkpoint(tmp_path / "out" / "a.safetensors")
    assert found.card is not None
    assert found.card.classes == (0, 1, 2, 3, 4)
    assert found.card.recipe is not None
    assert found.card.recipe["labels"] == "0-4"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.safetensors"]
    assert trainer.main(options) == 0
    assert capsys.readouterr().out == "a: is there\n"
    assert trainer.main([*options, "--list"]) == 0
    assert capsys.readouterr().out == f"a: {100 * found.card.metrics['accuracy']:.2f} %\n"


@pytest.mark.parametrize("room", [1, 3], ids=["in the second epoch", "at the end"])
def test_a_disk_that_fills_loses_nothing(tmp_path: Path, capsys, monkeypatch, room: int) -> None:
    path = written(tmp_path, f"a: {{{SMALL}, recipe: {{epochs: 3}}}}")
    words = ["--zoo", str(path), "--device", "cpu", "--save-seconds", "0"]

    def run(folder: str) -> int:
        return int(trainer.main([*words, "--out", str(tmp_path / folder)]))

    assert run("whole") == 0
    capsys.readouterr()
    write, done = Path.write_bytes, []

    def full(self: Path, data: bytes) -> int:
        if len(done) == room:
            write(self, bytes(data)[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(self)
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert run("parts") == 2
    out = tmp_path / "parts" / "a.safetensors"
    full_file = out.with_suffix(".resume") if room == 1 else out
    assert capsys.readouterr().err == f"{full_file} cannot be written: No space left on device\n"
    assert [file.name for file in out.parent.iterdir()] == ["a.resume"]
    assert run("parts") == 0
    assert capsys.readouterr().out.count(": epoch ") == 3 - room
    assert read_checkpoint(out).digest == read_checkpoint(tmp_path / "whole" / "a.safetensors").digest
    assert [file.name for file in out.parent.iterdir()] == ["a.safetensors"]


# --- networks that are there -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, ""),
        ({"architecture": "digits_resnet(width=0.5)"}, r"architecture is digits_resnet\(width=0.5\) on its card and"),
        ({"data": "mnist"}, "data is mnist on its card and digits in the zoo"),
        ({"classes": (0, 1, 2)}, "has 10 outputs, but its card names 3 classes"),
        ({"metrics": {}}, "has no card that states an accuracy"),
        ({"width": 0.5}, "conv1.weight has shape .* its card says that it is a digits_resnet"),
    ],
)
def test_a_card_that_contradicts_its_network_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    entry = next(iter(zoo.read_zoo(written(tmp_path, f"a: {{{SMALL}}}")).values()))
    fields: dict[str, object] = {"architecture": entry.architecture, "data": "digits", "metrics": {"accuracy": 0.5}}
    network = build_network(f"digits_resnet(width={changed.pop('width', 0.25)})")
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, network.state_dict(), Card.model_validate({**fields, **changed}))
    if not message:
        assert zoo.accuracy_of(path, entry) == 0.5
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        zoo.accuracy_of(path, entry)
    assert "\n" not in str(caught.value)


def test_what_the_entries_train_with_is_a_recipe() -> None:
    for entry in zoo.read_zoo().values():
        assert TrainRecipe.create(seed=entry.seed, **entry.recipe).epochs > 0
