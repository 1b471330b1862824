"""A result shows itself in few lines, and compares and judges as the command line does."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from digits_parents import small_parents
from torch.utils.data import DataLoader, TensorDataset

from depfuse import Comparison, FusionResult, fuse
from depfuse.cli.wording import in_options
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.data.floats import to_floats
from depfuse.errors import DataError
from depfuse.evaluate import evaluate
from depfuse.fusion.agreement import agreement_verdict
from depfuse.fusion.contenders import advise_on
from depfuse.fusion.verdict import verdict


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.fixture
def result(data: DataSet) -> FusionResult:
    return fuse(small_parents(), {"refit": "none"}, calibration_loader(data, 120))


class _Text(HTMLParser):
    """Collects the lines that are shown: rows of tables, pictures, what is not folded."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.open, self.texts = 0, [], []  # type: ignore[var-annotated]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.rows += tag in ("tr", "svg", "summary", "b")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_result_is_shown_in_20_lines_and_as_a_card_of_30(result: FusionResult, data: DataSet) -> None:
    assert len(repr(result).splitlines()) <= 20
    assert f"renorm reset {'kept' if result.steps[0].kept else 'not kept'}" in repr(result)
    assert "result.comparison(test)" in repr(result)
    compared = result.comparison(Loader(data.test, data.preprocessing, batch_size=500))
    shown = repr(result)
    assert len(shown.splitlines()) <= 20
    assert f"child {100 * compared.child.accuracy:.2f} %" in shown
    assert compared.verdict in " ".join(shown.split())
    reader = _Text()
    reader.feed(result._repr_html_())
    reader.close()
    assert reader.open == []
    assert reader.rows <= 30
    assert compared.verdict in reader.texts
    names = [f"{group.name}: {group.size} channels" for group in result.groups.free]
    assert set(names) <= set(reader.texts)
    assert result._repr_html_().count("<rect") == len(names)


def test_a_comparison_shows_its_scores_and_its_verdict(result: FusionResult, data: DataSet) -> None:
    test = Loader(data.test, data.preprocessing, batch_size=500)
    for found in (result.comparison(test), result.comparison([images for images, _ in test])):
        text, card = repr(found), found._repr_html_()
        assert max(map(len, text.splitlines())) <= 110
        assert len(text.splitlines()) <= 20
        assert found.verdict in " ".join(text.split())
        reader = _Text()
        reader.feed(card)
        reader.close()
        assert reader.open == []
        assert reader.rows <= 30
        assert found.verdict in reader.texts
        share = found.child.accuracy if isinstance(found, Comparison) else found.child.ensemble
        assert f"{100 * share:6.2f} %" in reader.texts
        assert f"{100 * share:6.2f} %" in text.splitlines()[1]
        assert {"parent 2", "parent 1, head refitted", "ensemble", "naive average, reset"} <= set(reader.texts)


def test_groups_are_folded_until_they_are_printed(result: FusionResult) -> None:
    groups = result.groups
    assert len(repr(groups).splitlines()) == 1
    assert "4 free groups (2 x 8, 2 x 16), 48 channels" in repr(groups)
    assert "fixed: linear" in repr(groups)
    assert all(len(repr(group)) < 100 for group in groups)
    slots = sum(len(group.slots) for group in groups)
    assert len(str(groups).splitlines()) > slots


def test_names_cannot_add_markup_to_the_card(result: FusionResult) -> None:
    Odd = type("<img src=x>", (torch.nn.Identity,), {})
    card = fuse([*small_parents()], "fast", torch.rand(40, 1, 8, 8))._repr_html_()
    assert "<img" not in card
    object.__setattr__(result, "child", Odd())
    assert "&lt;img src=x&gt;" in result._repr_html_()
    assert "<img" not in result._repr_html_()


def test_the_verdict_is_that_of_the_command_line_in_the_words_of_python(result: FusionResult, data: DataSet) -> None:
    assert "result.comparison(test)" in result.verdict
    found = result.comparison(Loader(data.test, data.preprocessing, batch_size=500))
    assert result.compared is found
    assert result.verdict == found.verdict == verdict(advise_on(result, found))
    assert re.match(r"Keep (the child|parent|the ensemble)", found.verdict)
    if "`result.save(file)`" in found.verdict:
        assert "`--out FILE`" in in_options(found.verdict) or "--out FILE" in in_options(found.verdict)


def test_labelled_data_of_any_kind_give_the_same_scores(result: FusionResult, data: DataSet) -> None:
    expected = evaluate(result.child, Loader(data.test, data.preprocessing, batch_size=500))
    inputs, labels = to_floats(data.test.images, data.preprocessing), data.test.required_labels
    pairs = TensorDataset(inputs, labels)
    for found in (
        result.comparison((inputs, labels)),
        result.comparison(inputs, labels.tolist()),
        result.comparison(pairs),
        result.comparison(DataLoader(pairs, batch_size=64)),
    ):
        assert found.child.accuracy == expected.accuracy
        assert found.child.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.child.count == len(labels)


def test_data_without_labels_give_the_agreement_and_no_accuracy(result: FusionResult, data: DataSet) -> None:
    inputs = to_floats(data.test.images, data.preprocessing)
    found = result.comparison(inputs)
    assert result.compared is found
    with torch.no_grad():
        first, second, child = (network(inputs) for network in (*result.parents, result.child))
    same = (child.argmax(1) == (first + second).argmax(1)).double().mean()
    assert found.child.ensemble == pytest.approx(float(same))
    assert found.child.members == pytest.approx(
        [float((child.argmax(1) == own.argmax(1)).double().mean()) for own in (first, second)]
    )
    assert result.verdict == found.verdict == agreement_verdict(found, ["parent 1", "parent 2"])
    assert f"predicts the ensemble's class for {100 * found.child.ensemble:.2f} %" in found.verdict
    for shown in (repr(result), repr(found), result._repr_html_()):
        assert f"{100 * found.child.ensemble:.2f} %" in shown
        assert "accuracy" not in shown.replace("no accuracy is known", "")
    assert len(repr(result).splitlines()) <= 20


def test_too_few_labels_are_refused(result: FusionResult, data: DataSet) -> None:
    inputs = to_floats(data.test.images, data.preprocessing)
    with pytest.raises(DataError, match="3 labels for 500 test samples"):
        result.comparison(inputs, [0, 1, 2])
    assert result.compared is None


def test_a_child_in_half_precision_is_compared_in_float32(data: DataSet) -> None:
    halves = [parent.half() for parent in small_parents()]
    result = fuse(halves, {"refit": "none"}, calibration_loader(data, 120))
    assert next(result.child.parameters()).dtype == torch.float16
    found = result.comparison(Loader(data.test, data.preprocessing, batch_size=500))
    assert max(own.accuracy for own in found.parents) > 0.4
    assert next(result.child.parameters()).dtype == torch.float16
