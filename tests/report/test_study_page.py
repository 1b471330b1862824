"""Studies on the page of `depfuse report`: read back, shown whole, one mark for each trial, and bad ones named."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import dom_of
from pydantic import ValidationError
from test_html_report import HOSTILE, Page, digest, dumped, measured
from test_report import fusion_report

from depfuse.cli import main
from depfuse.recipe import Recipe
from depfuse.report import describe_environment
from depfuse.report.page import Run, Runs, build_page, find_runs
from depfuse.report.page.best import best_sentences
from depfuse.report.page.scales import linear, logarithmic, named
from depfuse.report.page.study_figures import history, pareto, slice_charts
from depfuse.report.study import StudyReport
from depfuse.study.trials import TrialRecord

DISTANCES = ("cosine", "pearson", "best")


def trial(number: int, **changes: Any) -> TrialRecord:
    """The best one is number 5; every sixth is pruned, every eleventh is refused."""
    fields: dict[str, Any] = {
        "trial": number,
        "state": "complete",
        "quality": 0.2 + abs(number - 5) / 100,
        "seconds": 1.0 + number % 7,
        "images": 200,
        "digest": "d",
        "parameters": {"distance": DISTANCES[number % 3], "renorm": number % 2 == 0},
        "recipe": Recipe(seed=number).model_dump(mode="json"),
    }
    if number % 4 == 1:
        fields["parameters"]["regularisation"] = 10.0 ** -(number % 5)
    if number % 6 == 4:
        fields |= {"state": "pruned", "reason": "behind the median", "seconds": None}
    elif number % 11 == 9:
        fields |= {"state": "refused", "reason": "contradictory", "seconds": None, "quality": None, "recipe": None}
    return TrialRecord.model_validate(fields | changes)


def study(count: int = 12, **changes: Any) -> StudyReport:
    fields: dict[str, Any] = {
        "trials": [trial(number) for number in range(count)],
        "importances": {"distance": 0.6, "renorm": 0.3, "regularisation": 0.1},
        "labelled": False,
        "timed": True,
        "asked": count,
        "parents": ["nets/a.safetensors", "nets/b.safetensors"],
        "architectures": ["digits_resnet", "digits_resnet"],
        "data": "digits",
        "calibration": 200,
        "judged": 100,
        "kept": {"refit": "none", "calibration": 200},
        "environment": describe_environment(torch.device("cpu")),
        "command": ["depfuse", "tune", "nets/a.safetensors", "nets/b.safetensors"],
    }
    return StudyReport.model_validate(fields | changes)


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else content.model_dump_json()
    path.write_text(text, encoding="utf-8")


def page_of(*reports: Any) -> Page:
    return Page(build_page(Runs(Path("runs"), tuple(Run(f"run{n}", own) for n, own in enumerate(reports)), ())))


def marks(drawing: str) -> int:
    """How many there are in a drawing, its legend left out."""
    return len(re.findall(r'class="mark', re.sub(r"<ul.*?</ul>", "", drawing)))


def test_a_study_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = study()
    put(tmp_path / "deep/er/study.json", written)
    put(tmp_path / "other name.json", written)
    found = find_runs(tmp_path).runs
    assert [(run.name, run.report) for run in found] == [("deep/er", written), ("other name.json", written)]
    assert written.best.trial == 5
    later = {**json.loads(written.model_dump_json()), "field_of_a_later_version": 1}
    assert StudyReport.model_validate(later) == written


@pytest.mark.parametrize(
    "wrong",
    [
        {"quality": None},
        {"seconds": None},
        {"seconds": -1.0},
        {"recipe": None},
        {"quality": float("inf")},
        {"parameters": {"x": [1]}},
        {"parameters": {"x": 10**400}},
        {"parameters": {"x": float("nan")}},
    ],
)
def test_a_complete_trial_is_whole(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        trial(0, **wrong)


def test_a_folder_of_studies_and_reports_is_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "search/study.json", study())
    put(tmp_path / "search/trial-5.json", trial(5))
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert not said.err
    sentence = (
        "Search on digits (search): trial 5 is the best of 12 trials, 9 complete, 2 pruned, 1 refused: held-out"
        " disagreement 0.2000 (the first trial, with defaults, has 0.2500)."
    )
    assert said.out.replace("\n", " ").startswith(sentence)
    alone = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [part for part in alone.all("details") if part.get("class") == "run" and "open" in part]
    put(tmp_path / "fusion/report.json", fusion_report())
    assert main(["report", str(tmp_path)]) == 0
    assert "shows 2 runs." in capsys.readouterr().out
    both = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert both.inside("h3").split("\n") == ["fusion", "search"]
    assert {"Fusions", "Searches"} <= set(both.inside("h2").split("\n"))
    assert not [part for part in both.all("details") if part.get("class") == "run" and "open" in part]
    first, second = best_sentences(find_runs(tmp_path).runs)
    assert first.startswith("Best on digits: ")
    assert second == sentence


def test_the_section_holds_trials_recipe_and_what_was_searched() -> None:
    report = study(best := 60)
    page = page_of(report, fusion_report())
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert "depfuse fuse --preset trial-5.json" in words
    assert "Recipe of trial 5" in words
    assert "seed" in words
    assert "agreement with the ensemble, labels unread, 100 other training images" in words
    assert "refit=none, calibration=200" in words
    text = build_page(Runs(Path("runs"), (Run("a", report),), ()))
    (table,) = re.findall(r'<div class="wide" role="region" aria-label="Trials".*?</table>', text)
    rows = re.findall(r'<tr><th scope="row" class="number" data-value="(\d+)">', table)
    assert len(rows) == best
    complete = [own for own in report.trials if own.state == "complete"]
    ranked = sorted(complete, key=lambda own: (own.quality, own.seconds))
    assert rows[: len(complete)] == [str(own.trial) for own in ranked]
    assert "behind the median" in table
    accurate = page_of(study(labelled=True), fusion_report())
    assert "held-out accuracy (%)" in accurate.inside("figcaption")
    assert "Trial 11 is the best" in accurate.words


def test_figures_hold_one_mark_for_each_trial() -> None:
    report = study(40)
    complete = [own for own in report.trials if own.state == "complete"]
    assert marks(history(report)) == 40
    assert marks(pareto(report)) == len(complete)
    drawings = dict(zip(report.importances or (), slice_charts(report), strict=True))
    assert marks(drawings["distance"]) == marks(drawings["renorm"]) == len(complete)
    assert marks(drawings["regularisation"]) == sum("regularisation" in own.parameters for own in complete)
    assert all(name in drawings["distance"] for name in DISTANCES)
    for drawing in (history(report), pareto(report), *drawings.values()):
        for right, down in re.findall(r'<circle cx="([^"]+)" cy="([^"]+)"', drawing):
            assert 0 < float(right) < 360
            assert 0 < float(down) < 220
        assert re.search(r'<svg[^>]* role="img" aria-label="[^"]+"', drawing)
    many = study(20, trials=[trial(n, parameters={f"p{k}": float(n + k) for k in range(9)}) for n in range(20)])
    assert len(slice_charts(many)) == 6


def test_scales() -> None:
    assert [logarithmic([0.01, 1.0, 100.0]).share(value) for value in (0.01, 1.0, 100.0)] == pytest.approx([0, 0.5, 1])
    for ends in ((0.1, 60.0), (0.5, 0.7), (1e-12, 1e3), (3.0, 3.0)):
        scale = logarithmic(ends, 0.05)
        assert all(0 < scale.share(value) < 1 for value in ends)
        assert all(scale.low <= tick <= scale.high for tick, _ in scale.ticks)
    names = named(["b", "a name that is much too long"])
    assert names.share(0) > names.share(1) > 0
    assert [text for _, text in names.ticks] == ["b", "a name that is mu…"]
    assert linear([2.0]).share(2.0) == 0.5
    assert [text for _, text in linear([0.0, 11.0], whole=True).ticks] == ["0", "5", "10"]


def test_a_study_at_its_limits() -> None:
    one = study(1, importances=None, trials=[trial(0, parameters={}, seconds=0.0)])
    page = page_of(one)
    assert "Too few trials to tell" in page.words
    assert "it is the first trial, with defaults" in page.words
    assert "nan" not in page.words
    with pytest.raises(ValidationError, match="none of the trials is complete"):
        study(1, trials=[trial(10)])


def test_text_of_studies_stays_text(tmp_path: Path) -> None:
    changes = {"parameters": {HOSTILE: HOSTILE}, "recipe": {HOSTILE: HOSTILE}}
    trials = [trial(0, **changes), trial(4, reason=HOSTILE), trial(5, not_converged=[HOSTILE], **changes)]
    lists = {key: [HOSTILE] for key in ("parents", "architectures", "command")}
    put(tmp_path / "study.json", study(1, trials=trials, importances={HOSTILE: 1.0}, data=HOSTILE, **lists))
    assert main(["report", str(tmp_path), "-q"]) == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert Counter(tag for tag, _ in page.elements)["script"] == 1
    assert page.words.count(HOSTILE) >= 10


def test_broken_and_foreign_studies_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = json.loads(study().model_dump_json())
    put(tmp_path / "good/study.json", study())
    put(tmp_path / "torn/study.json", '{"trials": [')
    put(tmp_path / "foreign/study.json", '{"epochs": 3}')
    put(tmp_path / "none/study.json", json.dumps({**good, "trials": []}))
    put(tmp_path / "huge/study.json", json.dumps({**good, "trials": [{**good["trials"][0], "quality": 1e999}]}))
    assert main(["report", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "foreign/study.json is no report of depfuse: trials: Field required" in lines[0]
    assert "huge/study.json is no report of depfuse: trials.0.quality: Input should be a finite number" in lines[1]
    assert "none/study.json is no report of depfuse: trials: Value error, none of the trials is complete" in lines[2]
    assert "torn/study.json" in lines[3]
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "4 reports could not be read" in page.inside("h2")
    assert page.inside("h3") == "good"
    shutil.rmtree(tmp_path / "good")
    assert main(["report", str(tmp_path)]) == 2
    assert "none of its 4 reports can be read" in capsys.readouterr().err


def test_a_page_with_studies_can_be_read_without_eyes_or_mouse_and_asks_for_nothing() -> None:
    text = build_page(Runs(Path("runs"), (Run("a", study()), Run("b", study(30))), ()))
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {str(link["href"])[1:] for link in page.all("a")} <= set(ids)
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    assert all(region["aria-label"] for region in page.all("div") if region.get("role") == "region")
    assert not [name for _, own in page.elements for name in own if name.startswith("on") or name == "style"]
    assert f"'sha256-{digest(page.inside('script'))}'" in text.replace("&#x27;", "'")
    assert "http:" not in text.lower()
    assert "https:" not in text.lower()


def test_a_study_of_hundreds_of_trials_is_a_page_that_a_browser_opens() -> None:
    report = study(500)
    text = build_page(Runs(Path("runs"), (Run("a", report),), ()))
    assert len(text.encode()) < 1_500_000


@pytest.mark.parametrize("width", [390, 1280])
def test_no_study_is_wider_than_its_window(tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    text = build_page(Runs(Path("runs"), (Run("a", study(60)),), ()))
    page.write_text(re.sub(r"<details ", "<details open ", text), encoding="utf-8")
    assert 'data-fits="true"' in dumped(page, width)


def narrow() -> StudyReport:
    """Qualities that differ in the sixth digit, long names, and seconds over six powers of ten."""
    solvers = ("reweighted-random-walk", "sinkhorn-implicit", "emd")
    drawn = [
        {"align.solver[activations]": solvers[n % 3], "align.solver.regularisation": 10.0 ** -(n % 7), "x": 1e-5 * n}
        for n in range(9)
    ]
    trials = [
        trial(n, state="complete", quality=1.78210 + n * 1e-5, seconds=10.0 ** (n % 6 - 3), parameters=own, reason=None)
        for n, own in enumerate(drawn)
    ]
    return study(9, trials=[own.model_copy(update={"recipe": Recipe().model_dump(mode="json")}) for own in trials])


def test_names_of_ticks_have_room() -> None:
    for report in (narrow(), study(40), study(40, labelled=True), study(3)):
        for drawing in (history(report), pareto(report), *slice_charts(report)):
            below = re.findall(r'<text x="([^"]+)" y="195" text-anchor="middle">([^<]+)<', drawing)
            assert below
            widths = [(float(x), 8.3 * len(text)) for x, text in below]  # of digits in a wide font of 13 pixels
            assert all(x - width / 2 >= 0 and x + width / 2 <= 360 for x, width in widths)
            assert all(second - first >= (wide + other) / 2 for (first, wide), (second, other) in pairwise(widths))


def test_drawings_and_tables_of_studies_are_legible_at_1280_pixels(tmp_path: Path) -> None:
    reports = (narrow(), study(40), study(40, labelled=True), study(3))
    page = tmp_path / "page.html"
    text = build_page(Runs(Path("runs"), tuple(Run(f"search {n}", own) for n, own in enumerate(reports)), ()))
    page.write_text(re.sub(r"<details ", "<details open ", text), encoding="utf-8")
    assert measured(page, 1280) == []


def test_words_filter_the_trials_and_buttons_sort_them(tmp_path: Path) -> None:
    text = build_page(Runs(Path("runs"), (Run("a", study(60)), Run("b", study(12))), ()))
    steps = (
        "const field = document.querySelector('.trials input');"
        "const table = document.querySelector('.trials + .wide table');"
        "field.value = 'COSINE complete'; field.dispatchEvent(new Event('input'));"
        "document.body.dataset.said = document.querySelector('.trials [role=status]').textContent;"
        "table.querySelector('th button').click();"
        "document.body.dataset.first = table.tBodies[0].rows[0].cells[0].textContent;"
        "document.body.dataset.runs = document.querySelectorAll('details.run:not([hidden])').length;"
    )
    policy = re.sub("script-src &#x27;[^&]*&#x27;", "script-src &#x27;unsafe-inline&#x27;", text)
    page = tmp_path / "page.html"
    page.write_text(policy.replace("</body>", f"<script>{{ {steps} }}</script></body>"), encoding="utf-8")
    found = Page(dom_of(page))
    (body,) = found.all("body")
    expected = sum(own.state == "complete" and own.parameters["distance"] == "cosine" for own in study(60).trials)
    assert body["data-said"] == f"{expected} of 60 trials"
    assert body["data-first"] == "59"
    assert body["data-runs"] == "2"
