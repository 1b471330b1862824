"""The verdict: what it says to keep follows from the scores, and only what the user has is recommended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import fusion_report

from depfuse.cli.wording import in_options
from depfuse.errors import DataError
from depfuse.evaluate import Difference, Scores, difference, evaluate
from depfuse.fusion.advice import Advice, Contender, SameStart, advise
from depfuse.fusion.verdict import verdict
from depfuse.report import FusionReport, loading_lines
from depfuse.report.page.overview import Entry, fusions_table
from depfuse.text import decimal, short_paths

IMAGES = 500


def scores(right: int, offset: int = 0, images: int = IMAGES) -> Scores:
    """A network that is right on images `offset` to `offset + right`, counted around."""
    correct = torch.zeros(images, dtype=torch.bool)
    correct[(torch.arange(right) + offset) % images] = True
    return Scores(right / images, 1.0, images, trivial=0.1, of_images=correct)


def contenders(child: int, parents: list[int], ensemble: int, average: int = 50, **others: int) -> list[Contender]:
    found = [Contender("child", scores(child), path=Path("child.safetensors"))]
    found += [Contender("parent", scores(own), n, Path(f"{'abcd'[n - 1]}.pt")) for n, own in enumerate(parents, 1)]
    found += [Contender("ensemble", scores(ensemble), networks=len(parents)), Contender("average", scores(average))]
    return found + [
        Contender(name.replace("_", " "), scores(own), 1, networks=1 + (name == "teachers"))
        for name, own in others.items()
    ]


def said(chance: float = 0.1, moved: SameStart | None = None, **table) -> tuple[Advice, str]:
    table = [replace(o, scores=replace(o.scores, trivial=chance)) for o in contenders(**table)]
    advice = advise(table, moved)
    return advice, verdict(advice)


counts = st.integers(0, IMAGES)


@given(
    child=counts, parents=st.lists(counts, min_size=2, max_size=4), ensemble=counts, average=counts,
    trained=counts, refitted=counts, teachers=counts, offset=st.integers(0, IMAGES),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_what_is_kept_exists_and_nothing_of_equal_cost_is_better(
    child, parents, ensemble, average, trained, refitted, teachers, offset
):
    table = contenders(
        child, parents, ensemble, average, trained_parent=trained, refitted_parent=refitted, teachers=teachers
    )
    table[1] = Contender("parent", scores(parents[0], offset), 1, Path("a.pt"))
    advice = advise(table)
    words = verdict(advice)
    had = {"child": child, "parent": max(parents), "average": average, "ensemble": ensemble}
    if advice.keep is None:
        assert max(had.values()) <= 0.1 * IMAGES + 2.1 * (IMAGES * 0.15 * 0.85) ** 0.5
        assert "Keep none of them" in words
        return
    assert advice.keep.what in had
    alone = {what: right for what, right in had.items() if what != "ensemble"}
    single = advice.instead or advice.keep
    if single.what != "ensemble":
        assert round(IMAGES * single.value) == max(alone.values())
    if advice.keep.what == "child":
        assert child >= max(average, *parents)
        assert child > 50
        assert words.startswith("Keep the child: of 500 test images")
    else:
        assert "keep the child" not in words.lower()
    assert ("below the naive average" in words) == (average > child)
    if advice.keep.what == "ensemble" and advice.instead is not None:
        assert ensemble > max(alone.values())
    assert "taught" not in words


@given(child=counts, parents=st.lists(counts, min_size=2, max_size=3), ensemble=counts, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_without_single_images_the_same_accuracies_are_told_apart_less(child, parents, ensemble, seed):
    table = contenders(child, parents, ensemble)
    without = [Contender(o.what, replace(o.scores, of_images=None), o.number, o.path, o.networks) for o in table]
    kept, less = advise(table).keep, advise(without).keep
    assert kept is None or less is None or less.networks <= kept.networks


def test_one_image_of_five_hundred_is_no_reason_to_run_two_networks():
    advice, words = said(child=490, parents=[260, 296], ensemble=491)
    assert advice.keep.what == "child"
    assert "0.20 points below the ensemble of both parents (98.20 %), which is within the error of so few" in words
    assert "for the cost of one network instead of 2" in words
    advice, words = said(child=450, parents=[260, 296], ensemble=491)
    assert (advice.keep.what, advice.instead.what) == ("ensemble", "child")
    assert words.startswith(
        "Keep the ensemble of both parents (98.20 % of 500 test images) where running 2 networks is affordable, "
        "otherwise the child: the child reaches 90.00 %, 30.80 points above the better parent (b.pt, 59.20 %)"
    )


def test_the_ensemble_of_changed_parents_is_not_recommended():
    advice, words = said(child=470, parents=[260, 296], ensemble=450, teachers=499)
    assert advice.keep.what == "child"
    assert "99.80" not in words


def test_of_many_parents_the_best_is_named():
    _, words = said(child=300, parents=[100, 400, 200], ensemble=402)
    assert words.startswith("Keep parent b.pt (80.00 % of 500 test images): the child reaches 60.00 %, 20.00 points")
    assert "below the best parent (b.pt, 80.00 %)" in words
    _, words = said(child=300, parents=[100, 400, 200], ensemble=480)
    assert "Keep the ensemble of all 3 parents" in words
    assert "where running 3 networks is affordable, otherwise parent b.pt (80.00 %)" in words


def test_files_of_one_name_are_told_apart_by_their_folders():
    table = [
        replace(own, path=Path(f"run/fold_{own.number}/final.pth")) if own.what == "parent" else own
        for own in contenders(child=70, parents=[60, 80, 50], ensemble=75)
    ]
    assert "Keep parent fold_2/final.pth (" in verdict(advise(table))
    assert short_paths(["a/b/c.pt", "a/d/c.pt"]) == ["b/c.pt", "d/c.pt"]
    assert short_paths(["a/c.pt", "a/d.pt"]) == ["c.pt", "d.pt"]
    assert short_paths(["in memory", "in memory"]) == ["in memory", "in memory"]
    assert short_paths(["/c.pt", "b/c.pt"]) == ["/c.pt", "b/c.pt"]


def test_a_better_average_is_kept_and_how_to_write_it_is_said():
    advice, words = said(child=400, parents=[410, 420], ensemble=430, average=440)
    assert advice.keep.what == "average"
    assert "below the naive average (88.00 %)" in words
    assert "--preset soup in place of the other settings writes that average" in in_options(words)


def test_a_network_at_chance_is_not_praised():
    advice, words = said(child=58, parents=[49, 50], ensemble=50)
    assert advice.keep is None
    assert advice.chance_alone
    assert words.startswith("Keep none of them: of 500 test images, no network gets more right than one that always")
    advice, words = said(child=58, parents=[400, 50], ensemble=50)
    assert advice.keep.what == "parent"
    assert "no better than always predicting the most frequent label (10.00 %)" in words


def test_what_lies_in_no_file_is_mentioned_with_the_option_that_writes_it():
    advice, words = said(child=400, parents=[300, 310], ensemble=401, trained_parent=450, refitted_parent=440)
    assert advice.keep.what == "child"
    assert [own.what for own in advice.better] == ["refitted parent", "trained parent"]
    assert "reaches 90.00 % but lies in no file; `safetensors.torch.save_file(comparison.baseline.network" in words
    unwritten = (
        "The parent trained as long reaches 90.00 % but lies in no file; running again with --out-parent FILE writes"
    )
    assert unwritten in in_options(words)
    written = [*contenders(400, [300, 310], 405), Contender("trained parent", scores(450), 1, Path("trained.st"))]
    advice = advise(written)
    assert advice.keep.what == "trained parent"
    assert verdict(advice).startswith("Keep the parent trained as long (trained.st) (90.00 % of 500 test images)")
    assert not advice.better


def test_a_child_that_was_not_written_is_recommended_with_the_option_that_writes_it():
    table = [own for own in contenders(490, [260, 296], 450) if own.what != "child"]
    words = verdict(advise([Contender("child", scores(490)), *table]))
    assert words.endswith("no file: `result.save(file)` writes it.")
    assert in_options(words).endswith("The child lies in no file: --out FILE writes it.")
    assert "in no file" not in said(child=490, parents=[260, 296], ensemble=450)[1]


@pytest.mark.parametrize(
    ("moved", "average", "expected"), [(0, 455, True), (3, 455, True), (30, 455, False), (0, 400, False)]
)
def test_parents_that_share_a_start_are_recognised(moved, average, expected):
    advice, words = said(
        moved=SameStart(moved=moved, channels=140), child=452, parents=[450, 440], ensemble=455, average=average
    )
    assert (advice.same_start is not None) == expected
    assert ("share a start" in words) == expected
    assert ("--preset soup" in in_options(words)) == (average == 455)


def test_parents_of_different_labels_are_told_with_how_many_they_know():
    table = contenders(380, [230, 240], 370)
    known = [Contender(o.what, o.scores, o.number, o.path, labels=5) if o.what == "parent" else o for o in table]
    assert "the better parent (b.pt, 48.00 %, which knows 5 of the labels)" in verdict(advise(known))


def test_standard_error_is_that_of_matched_pairs():
    first, second = scores(490), scores(489, 5)
    found = difference(first, second)
    only_first, only_second = 5, 4
    assert found.value == pytest.approx(0.002)
    assert found.error == pytest.approx((only_first + only_second + 1 - 1 / 502) ** 0.5 / 502)
    independent = difference(Scores(0.98, 1, 500), Scores(0.978, 1, 500))
    assert independent.error == pytest.approx((0.02 * 0.98 + 0.022 * 0.978) ** 0.5 / 500**0.5, rel=0.1)
    assert Difference(0.03, 0.01).certain
    assert not Difference(-0.02, 0.01).certain
    with pytest.raises(DataError, match="accuracy on 500 images cannot be compared with accuracy on 100"):
        difference(first, scores(50, images=100))


def test_equal_networks_are_never_told_apart_and_five_images_are():
    assert not difference(scores(400), scores(400)).certain
    assert not difference(scores(404), scores(400)).certain
    assert difference(scores(406), scores(400)).certain


def test_scores_say_which_images_are_right():
    logits = torch.eye(4)[[0, 1, 2, 2, 1]]
    found = evaluate(torch.nn.Identity(), [(logits[:2], torch.tensor([0, 1])), (logits[2:], torch.tensor([2, 3, 3]))])
    assert found.of_images is not None
    assert found.of_images.tolist() == [True, True, True, False, False]
    assert found.trivial == 0.4


def test_how_the_child_is_loaded_runs_as_it_is_printed(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    network = torch.nn.Linear(3, 2)
    save_file(network.state_dict(), "child.safetensors")
    report = fusion_report(child={**fusion_report().child.model_dump(), "path": "child.safetensors"})
    says, *code = loading_lines(report)
    assert says.startswith("The child is in child.safetensors, a digits_resnet.")
    names = {"model": torch.nn.Linear(3, 2)}
    exec("\n".join(line.strip() for line in code), names)
    assert torch.equal(names["model"].weight, network.weight)
    assert loading_lines(fusion_report()) == []


def test_a_report_holds_the_advice_and_one_with_words_only_is_still_read():
    advice, words = said(child=490, parents=[260, 296], ensemble=440)
    report = fusion_report(advice=advice, verdict=words)
    again = FusionReport.model_validate_json(report.model_dump_json())
    assert again.advice == advice
    assert verdict(again.advice) == words
    old = json.loads(report.model_dump_json(exclude={"advice", "widened"}))
    table = fusions_table([Entry("1", "new", report), Entry("2", "old", FusionReport.model_validate(old))])
    assert str(table).count(">child</td>") == 1


def test_large_distances_are_powers_of_ten() -> None:
    assert [decimal(number) for number in (0.12345, 12.0, 5.26914e20)] == ["0.1235", "12.0000", "5.269e+20"]
