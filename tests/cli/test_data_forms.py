"""Commands on data without labels, of several sizes, or of other classes than the networks know."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depfuse import DepfuseWarning, fuse, load
from depfuse.cli import main
from depfuse.cli.data_sets import with_judged_images
from depfuse.data import DataSet, Loader, Preprocessing, calibration_loader, load_data
from depfuse.data.floats import to_floats
from depfuse.errors import RecipeError
from depfuse.evaluate import Agreement, evaluate, standard_error
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, state_digest, write_checkpoint
from depfuse.models import build_network
from depfuse.report.reading import read_report
from depfuse.report.schema import EvaluationReport, FusionReport
from depfuse.tasks.scores import R2
from tests.conftest import assert_one_sentence

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
FIRST, SECOND = (str(CHECKPOINTS / f"digits-same-{name}.safetensors") for name in "ab")
SMALL = tuple(str(Path(__file__).resolve().parents[1] / "parents" / f"small-{name}.safetensors") for name in "ab")
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


def test_without_labels_python_says_what_the_command_line_says(images, capsys) -> None:
    np.save("a.npy", images[:60])
    assert main(["fuse", *SMALL, "--data", "a.npy", "--report", "r.json", *NORMALISED]) == 0
    report = read_report(Path("r.json"))
    assert isinstance(report, FusionReport)
    data = load_data("a.npy", mean=(0.3053,), std=(0.3758,))
    with pytest.warns(DepfuseWarning, match="has no labels"):
        data = with_judged_images(data, fused=True)
    result = fuse([*map(load, SMALL)], calibration=calibration_loader(data, 2000))
    found = result.comparison(Loader(data.test, data.preprocessing, batch_size=250))
    assert state_digest(result.child.state_dict()) == report.child.digest
    assert result.recipe.model_dump(mode="json") == report.recipe
    assert (found.child.ensemble, list(found.child.members)) == (report.child.agreement, report.child.agreement_with)
    result.save("c.safetensors")
    written, saved = (read_checkpoint(Path(name)).card for name in ("child.safetensors", "c.safetensors"))
    assert written is not None
    assert saved is not None
    assert saved.metrics == written.metrics
    assert set(saved.metrics) == {"agreement", "confidence", "ensemble_loss", "images"}
    named = found.verdict
    for number, file in enumerate(SMALL, start=1):
        named = named.replace(f"parent {number}", Path(file).name)
    assert named == report.verdict


QUICK = ("--preset", "fast", "--calibration", "40")


@pytest.fixture
def unlabelled(images: np.ndarray, request: pytest.FixtureRequest) -> str:
    """60 images without labels: an array, an archive of one array under any name, or a folder of pictures."""
    if request.param == "a.npy":
        np.save("a.npy", images[:60])
    elif request.param == "a.npz":
        np.savez("a.npz", anything=images[:60])
    else:
        for number, image in enumerate(images[:60]):
            file = Path(request.param, "deep" if number % 2 else "", f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0]).save(file)
    return str(request.param)


def _assert_no_accuracy(*texts: str) -> None:
    for text in texts:
        assert "accuracy" not in text.replace("no accuracy is known", "")


@pytest.mark.parametrize("unlabelled", ["a.npy", "a.npz", "photos"], indirect=True)
def test_a_matching_needs_no_label(unlabelled: str, capsys) -> None:
    assert (
        main(["match", *SMALL, "--data", unlabelled, *QUICK, "--plot", "m.png", "--report", "m.json", *NORMALISED]) == 0
    )
    assert "Of 48 channels of small-b.safetensors" in capsys.readouterr().out
    assert Path("m.png").stat().st_size > 0


@pytest.mark.parametrize("unlabelled", ["a.npz", "photos"], indirect=True)
def test_a_path_without_labels_is_of_agreement(unlabelled: str, capsys) -> None:
    options = ("--points", "3", "--plot", "p.svg", "--report", "p.json", "--out", "c.safetensors")
    assert main(["path", *SMALL, "--data", unlabelled, *QUICK, *options, *NORMALISED]) == 0
    out = capsys.readouterr().out
    report = read_report(Path("p.json"))
    assert [row.agreement for row in (report.path[0], report.path[-1])] == [own.agreement for own in report.parents]
    assert report.path[1].agreement == report.child.agreement
    assert all(row.accuracy is None for row in (*report.path, *report.naive_path))
    highest = max(
        (1 - row.agreement)
        - ((1 - row.alpha) * (1 - report.path[0].agreement) + row.alpha * (1 - report.path[-1].agreement))
        for row in report.path
    )
    assert report.barrier.error == pytest.approx(highest)
    _assert_no_accuracy(out, Path("p.svg").read_text("utf-8"))
    assert f"{100 * highest:.2f} points of agreement with their ensemble" in out


@pytest.mark.parametrize("unlabelled", ["photos"], indirect=True)
def test_a_child_is_distilled_without_labels_and_compared_with_a_parent_trained_as_long(
    unlabelled: str, capsys
) -> None:
    written = ("--out", "c.safetensors", "--out-parent", "p.safetensors", "--report", "r.json")
    assert main(["fuse", *SMALL, "--data", unlabelled, *QUICK, "--distil", "1", *written, *NORMALISED]) == 0
    out = capsys.readouterr().out
    report = read_report(Path("r.json"))
    assert report.trained_parent.agreement is not None
    assert read_checkpoint(Path("p.safetensors")).card.metrics["agreement"] == report.trained_parent.agreement
    assert f"Trained as long, small-{'ab'[report.trained_parent.path == SMALL[1]]}.safetensors agrees" in report.verdict
    _assert_no_accuracy(out, Path("r.json").read_text("utf-8").replace('"accuracy": null', ""))


@pytest.mark.parametrize("unlabelled", ["a.npy"], indirect=True)
def test_candidates_are_compared_and_drawn_without_labels(unlabelled: str, capsys) -> None:
    settings = ("--preset", "best", "--calibration", "40", "--set", "goal.steps=0")
    written = ("--plot", "b.svg", "--report", "r.json")
    assert main(["fuse", *SMALL, "--data", unlabelled, *settings, *written, *NORMALISED]) == 0
    report = read_report(Path("r.json"))
    assert all(row.agreement is not None and row.accuracy is None for row in report.family)
    _assert_no_accuracy(capsys.readouterr().out, Path("b.svg").read_text("utf-8"))


@pytest.mark.parametrize("unlabelled", ["a.npy"], indirect=True)
def test_a_search_needs_no_label_unless_it_is_told_to_read_some(unlabelled: str, capsys) -> None:
    command = ["tune", *SMALL, "--data", unlabelled, "--trials", "1", "--held-out", "20", "--set", "refit=none"]
    assert main([*command, *NORMALISED]) == 0
    _assert_no_accuracy(capsys.readouterr().out)
    assert main([*command, "--labels", "10", "--out", "other", *NORMALISED]) == 2
    assert "a.npy has no labels, and --labels needs them" in capsys.readouterr().err


@pytest.fixture
def other_labels(images: np.ndarray) -> tuple[str, str]:
    """Two networks of which one knows the labels 0 to 5 and the other 5 to 9."""
    np.save("a.npy", images[:60])
    files = []
    for number, (file, labels) in enumerate(zip((FIRST, SECOND), (range(6), range(5, 10)), strict=True)):
        whole = read_checkpoint(Path(file))
        head = {key: tensor[list(labels)] for key, tensor in whole.state.items() if key.startswith("linear.")}
        files.append(f"{number}.safetensors")
        card = Card(architecture=whole.card.architecture, classes=tuple(labels))
        write_checkpoint(Path(files[-1]), {**whole.state, **head}, card)
    return files[0], files[1]


def test_networks_of_other_labels_agree_where_they_predict_the_same_label(other_labels, images, capsys) -> None:
    assert main(["eval", *other_labels, "--data", "a.npy", "--report", "r.json", *NORMALISED]) == 0
    inputs = to_floats(torch.from_numpy(images[:60]), Preprocessing.create(mean=(0.3053,), std=(0.3758,)))
    with torch.no_grad():
        first, second = (load(file)(inputs) for file in other_labels)
    joint = torch.cat([first[:, :5], (first[:, 5:] + second[:, :1]) / 2, second[:, 1:]], 1).argmax(1)
    same = float((first.argmax(1) == second.argmax(1) + 5).double().mean())
    found = read_report(Path("r.json")).networks
    assert 0.02 < same < 0.5
    assert found[0].agreement_with == pytest.approx([1.0, same])
    assert found[1].agreement_with == pytest.approx([same, 1.0])
    assert [own.agreement for own in found] == pytest.approx(
        [float((first.argmax(1) == joint).double().mean()), float((second.argmax(1) + 5 == joint).double().mean())]
    )


@pytest.mark.parametrize("data", ["a.npy", "digits"])
def test_parents_of_other_labels_are_matched(other_labels, data: str, capsys) -> None:
    assert main(["match", *other_labels, "--data", data, *QUICK, *NORMALISED]) == 0
    assert "channels of 1.safetensors" in capsys.readouterr().out


def test_a_child_of_parents_of_other_labels_is_compared_without_labels(other_labels, capsys) -> None:
    assert main(["fuse", *other_labels, "--data", "a.npy", *QUICK, "--report", "r.json", *NORMALISED]) == 0
    report = read_report(Path("r.json"))
    assert "no accuracy is known" in report.verdict
    child = load("child.safetensors")
    assert read_checkpoint(Path("child.safetensors")).card.classes == tuple(range(10))
    assert child(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert all(0 <= share <= 1 for share in (report.child.agreement, *report.child.agreement_with))
    _assert_no_accuracy(capsys.readouterr().out)
    code = main(["path", *other_labels, "--data", "a.npy", *QUICK, *NORMALISED])
    assert code == 2
    assert "a path needs parents that know the same labels" in capsys.readouterr().err


def test_parents_with_other_numbers_of_outputs_and_no_labels_are_refused_in_words(other_labels, capsys) -> None:
    parents = [load(file) for file in other_labels]
    with pytest.raises(RecipeError, match=r"parent 2 5, 6, .*: say so by `labels`, such as \[0, 1, 2, 3, 4, 5\]"):
        fuse(parents, "fast", torch.rand(40, 1, 8, 8))
    without_cards = [copy.deepcopy(parent) for parent in parents]
    with pytest.raises(RecipeError, match="parent 2 has 5 outputs, and parent 1 6 outputs: where they know different"):
        fuse(without_cards, "fast", torch.rand(40, 1, 8, 8))
    for file, parent in zip(other_labels, parents, strict=True):
        torch.save(parent.state_dict(), f"{file}.pt")
    bare = [f"{file}.pt" for file in other_labels]
    arch = ("--arch", read_checkpoint(Path(other_labels[0])).card.architecture)
    assert main(["match", *bare, *arch, "--data", "a.npy", *QUICK, *NORMALISED]) == 2
    assert "say by --classes which each of them knows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("train", "digits_resnet", "--out", "x.safetensors"), "a.npy has no labels, and"),
        (("fuse", FIRST, SECOND, "--set", "train.finetune=1"), "learns labels, and the training data have none"),
    ],
)
def test_what_needs_labels_says_so(images, capsys, command: tuple[str, ...], sentence: str) -> None:
    np.save("a.npy", images)
    code = main([*command, "--data", "a.npy", *NORMALISED])
    err = capsys.readouterr().err.splitlines()
    assert code == 2
    assert sentence in err[-1]


def test_classes_of_a_folder_are_found_by_number_or_refused(images, digits: DataSet, capsys) -> None:
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


@pytest.mark.parametrize("carded", [True, False])
@pytest.mark.parametrize("command", ["eval", "fuse"])
def test_labels_that_count_from_one_are_one_sentence(images, digits: DataSet, capsys, command, carded: bool) -> None:
    """They were taken for 11 classes, of which the network knows all but the last: 0 % were right."""
    np.savez("a.npz", x_test=images, y_test=digits.test.labels.numpy()[:200] + 1, x_train=images)
    files = [FIRST, SECOND]
    if not carded:
        for number, file in enumerate(files):
            torch.save(read_checkpoint(Path(file)).state, f"{number}.pt")
        files = ["0.pt", "1.pt", "--arch", "digits_resnet(width=1.25)"]
    files = [files[0], *files[2:]] if command == "eval" else files
    code = main([command, *files, "--data", "a.npz", *NORMALISED])
    assert_one_sentence(capsys, code, "the labels of a.npz are 1 to 10, and the outputs of", "subtract 1")


def test_numbers_of_classes_are_those_of_the_outputs_in_their_order(images, capsys) -> None:
    """Outputs that stand for 9, 8, ..., 0 are no outputs for 0, 1, ..., 9, whether of a parent or of the child."""
    files = []
    for number, file in enumerate((FIRST, SECOND)):
        whole = read_checkpoint(Path(file))
        files.append(f"{number}.safetensors")
        state = {**whole.state, **{key: whole.state[key].flip(0) for key in ("linear.weight", "linear.bias")}}
        write_checkpoint(Path(files[-1]), state, Card(architecture=whole.card.architecture))
    data, numbers = ("--data", "digits", *NORMALISED), "9,8,7,6,5,4,3,2,1,0"
    assert main(["eval", files[0], *data, "--classes", numbers, "--report", "r.json"]) == 0
    assert read_report(Path("r.json")).networks[0].accuracy > 0.95
    command = ["fuse", *files, *data, *QUICK, "--out", "c.safetensors", "--report", "r.json"]
    assert main([*command, "--classes", numbers, "--classes", numbers]) == 0
    found = read_report(Path("r.json"))
    assert min(parent.accuracy for parent in found.parents) > 0.95
    assert main(["eval", "c.safetensors", *data, "--report", "e.json"]) == 0
    assert read_report(Path("e.json")).networks[0].accuracy == found.child.accuracy
    command = ["fuse", FIRST, files[1], *data, *QUICK, "--out", "c.safetensors", "--report", "r.json"]
    assert main([*command, "--classes", "0-9", "--classes", numbers]) == 0
    mixed = read_report(Path("r.json"))
    assert [parent.accuracy for parent in mixed.parents] == [parent.accuracy for parent in found.parents]
    assert main(["fuse", FIRST, SECOND, *data, *QUICK, "--out", "d.safetensors"]) == 0
    assert read_checkpoint(Path("c.safetensors")).card.names is None
    child, same = (read_checkpoint(Path(f"{name}.safetensors")).state for name in "cd")
    assert all(torch.equal(child[key], same[key]) for key in same)


def test_a_size_that_is_none_is_one_sentence(images, capsys) -> None:
    np.save("a.npy", images)
    code = main(["eval", FIRST, "--data", "a.npy", "--size", "big", *NORMALISED])
    assert_one_sentence(capsys, code, "--size 'big' must be height and width")


def test_images_in_colour_become_grey_for_networks_that_take_grey_ones(images, capsys) -> None:
    for number, image in enumerate(images[:60]):
        Path("p").mkdir(exist_ok=True)
        Image.fromarray(image[0]).convert("RGB").save(f"p/{number:04d}.png")
    np.save("grey.npy", images[:60])
    np.save("colour.npy", np.repeat(images[:60], 3, 1).transpose(0, 2, 3, 1))
    found = []
    for data in ("grey.npy", "colour.npy", "p"):
        assert main(["eval", FIRST, SECOND, "--data", data, "--report", "r.json", *NORMALISED]) == 0
        said = capsys.readouterr().err
        assert ("in colour, and" in said and "their luminance is taken" in said) is (data != "grey.npy")
        found.append(read_report(Path("r.json")).networks)
    assert found[0] == found[1] == found[2]


def test_grey_images_are_given_to_networks_in_colour(images, capsys) -> None:
    torch.manual_seed(0)
    network = build_network("digits_resnet", in_channels=3, classes=10)
    card = Card(architecture="digits_resnet(in_channels=3)")
    write_checkpoint("c.safetensors", network.state_dict(), card)
    for number, image in enumerate(images[:8]):
        Path("p").mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(f"p/{number}.png")
    assert main(["eval", "c.safetensors", "--data", "p"]) == 0
    assert "p: the images are grey, and c.safetensors takes images in colour" in capsys.readouterr().err
    assert load_data("p", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)).train.images.shape == (8, 3, 8, 8)


def test_a_file_without_a_card_is_fused_with_one_that_has_a_card(images, capsys) -> None:
    np.save("a.npy", images[:40])
    torch.save(read_checkpoint(Path(FIRST)).state, "plain.pt")
    arch = ("--arch", read_checkpoint(Path(FIRST)).card.architecture)
    assert main(["fuse", "plain.pt", SECOND, *arch, "--preset", "fast", "--data", "a.npy", *NORMALISED]) == 0
    assert Path("child.safetensors").is_file()


def test_an_order_of_classes_that_is_assumed_is_said(images, digits: DataSet, capsys) -> None:
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for number, label in enumerate(digits.test.labels[:200].tolist()):
        for root, called in (("words", names[label]), ("numbers", str(label))):
            Path(root, "val", called).mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number, 0]).save(Path(root, "val", called, f"{number}.png"))
    for root in ("words", "numbers"):
        assert main(["eval", FIRST, "--data", root, *NORMALISED]) == 0
        assert ("eight, five, four, ..., are taken in alphabetical order" in capsys.readouterr().err) is (
            root == "words"
        )


def test_fewer_test_images_are_drawn_and_scores_get_standard_errors(tmp_path, digits, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ("--data", "digits", "--preset", "fast", "--report", "r.json", "--device", "cpu", "--calibration", "60")
    assert main(["fuse", *SMALL, *settings, "--test", "100"]) == 0
    captured = capsys.readouterr()
    report = read_report(Path("r.json"))
    assert isinstance(report, FusionReport)
    assert report.images == 100
    share = (report.child.accuracy * 100 + 1) / 102
    assert report.child.standard_error == pytest.approx((share * (1 - share) / 102) ** 0.5)
    assert "evaluated on 100 of 500 test images, drawn by seed 0" in captured.err
    rows = [*report.parents, *report.heads, report.ensemble, report.naive, report.naive_renorm, report.child]
    largest = 100 * max(row.standard_error for row in rows)
    assert f"Scores are of 100 test images, with standard errors of up to {largest:.2f} points." in captured.out
    numbers = torch.from_numpy(np.random.default_rng([0, 0]).permutation(500)[:100]).sort().values
    drawn = Loader(digits.test.take(numbers), digits.preprocessing, batch_size=100)
    assert report.parents[0].accuracy == evaluate(load(SMALL[0]), drawn).accuracy
    assert main(["fuse", *SMALL, *settings, "--test", "500"]) == 0
    assert "drawn by seed" not in capsys.readouterr().err


def test_agreements_have_standard_errors_as_well() -> None:
    agreement = Agreement(0.8, (0.8,), 0.9, 0.5, 98)
    assert standard_error(agreement) == pytest.approx((0.794 * 0.206 / 100) ** 0.5)
    assert np.isnan(standard_error(Agreement(0.8, (0.8,), 0.9, 0.5, 98, R2)))
