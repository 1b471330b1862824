"""Commands on data without labels, of several sizes, or of other classes than the networks know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depfuse.cli import main
from depfuse.data import DataSet
from depfuse.report.schema import EvaluationReport, FusionReport, read_report
from tests.conftest import assert_one_sentence

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
FIRST, SECOND = (str(CHECKPOINTS / f"digits-same-{name}.safetensors") for name in "ab")
NORMALISED = ("--mean", "0.3053", "--std", "0.3758", "--device", "cpu")


@pytest.fixture
def images(tmp_path: Path, digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.chdir(tmp_path)
    return digits.test.images.numpy()[:200]


def test_without_labels_networks_are_compared_and_no_accuracy_is_known(images, capsys) -> None:
    np.save("a.npy", images)
    assert main(["eval", FIRST, SECOND, "--data", "a.npy", "--report", "r.json", *NORMALISED]) == 0
    out = capsys.readouterr().out
    report = read_report(Path("r.json"))
    assert isinstance(report, EvaluationReport)
    first, second = report.networks
    assert first.accuracy is None
    assert first.agreement_with == [1.0, second.agreement_with[0]]
    assert first.agreement > 0.9
    assert "no accuracy is known" in out
    assert "accuracy " not in out.splitlines()[0]


def test_a_fusion_without_labels_says_how_well_the_child_agrees(images, capsys) -> None:
    np.save("a.npy", images)
    settings = ("--preset", "fast", "--report", "r.json", "--out", "c.safetensors")
    assert main(["fuse", FIRST, SECOND, "--data", "a.npy", *settings, *NORMALISED]) == 0
    captured = capsys.readouterr()
    report = read_report(Path("r.json"))
    assert isinstance(report, FusionReport)
    assert (report.labelled, report.advice, report.images) == (False, None, 20)
    assert "20 of its 200 images, drawn by seed 0, which are not used for calibration" in captured.err
    assert "Without labels no accuracy is known. Of 20 images the child predicts the ensemble's class" in captured.out
    assert main(["report", ".", "--out", "page.html"]) == 0
    assert "agrees with the ensemble" in Path("page.html").read_text("utf-8")


@pytest.mark.parametrize(
    "command",
    [("train", "digits_resnet", "--out", "x.safetensors"), ("fuse", FIRST, SECOND, "--set", "train.finetune=1")],
)
def test_what_needs_labels_says_so(images, capsys, command: tuple[str, ...]) -> None:
    np.save("a.npy", images)
    code = main([*command, "--data", "a.npy", *NORMALISED])
    err = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "a.npy has no labels, and" in err[-1]


def test_classes_of_a_folder_are_found_by_number_or_refused(images, digits: DataSet, capsys) -> None:
    from PIL import Image

    labels = digits.test.labels[:200].tolist()
    for root, names in (("numbers", {3: "3", 7: "7"}), ("words", {3: "three", 7: "seven"})):
        for number, label in enumerate(labels):
            if label in names:
                place = Path(root, "val", names[label])
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[number, 0]).save(place / f"{number}.png")
    assert main(["eval", FIRST, "--data", "numbers", "--report", "r.json", *NORMALISED]) == 0
    assert read_report(Path("r.json")).networks[0].accuracy > 0.95
    capsys.readouterr()
    assert main(["eval", FIRST, "--data", "words", *NORMALISED]) == 2
    assert "nothing says which output is which" in capsys.readouterr().err
    names = "zero,one,two,three,four,five,six,seven,eight,nine"
    assert main(["eval", FIRST, "--data", "words", "--classes", names, "--report", "w.json", *NORMALISED]) == 0
    assert read_report(Path("w.json")).networks[0].accuracy > 0.95


def test_a_size_that_is_none_is_one_sentence(images, capsys) -> None:
    np.save("a.npy", images)
    code = main(["eval", FIRST, "--data", "a.npy", "--size", "big", *NORMALISED])
    assert_one_sentence(capsys, code, "--size 'big' must be height and width")
