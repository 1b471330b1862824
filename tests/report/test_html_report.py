"""`depfuse report`: one page from any set of reports, complete in itself, whatever lies in the folder."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import chromium
import pytest
from digits_parents import digits_files
from test_report import fusion_report, network, path_report, scores

from depfuse.cli import main
from depfuse.errors import ReportError
from depfuse.report import PathReport, ScoreValues
from depfuse.report.page import Run, Runs, build_page, find_runs
from depfuse.report.page.best import best_sentences
from depfuse.report.page.scores import changed_settings, settings_text

QUICK = (
    "--data",
    "digits",
    "--calibration",
    "64",
    "--batch-size",
    "64",
    "--distance",
    "cosine",
    "--seed",
    "3",
    "--refit",
    "none",
)
HOSTILE = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """The elements of a page, their attributes, and its text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[tuple[tuple[str, ...], str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((tuple(self.open), data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def inside(self, tag: str) -> str:
        return "\n".join(data for open_, data in self.text if tag in open_)

    @property
    def words(self) -> str:
        return "".join(data for open_, data in self.text if not {"script", "style"} & set(open_))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of fuse, path and match as the commands write them."""
    folder = tmp_path_factory.mktemp("runs")
    parents = digits_files("a", "b")
    assert main(["fuse", *parents, *QUICK, "-q", "--out", str(folder / "c.safetensors"), *to(folder / "fuse")]) == 0
    assert main(["path", *parents, *QUICK, "-q", "--points", "3", *to(folder / "deep/er/path")]) == 0
    assert main(["match", *parents, *QUICK, "-q", *to(folder / "match")]) == 0
    return folder


def to(folder: Path) -> tuple[str, str]:
    return "--report", str(folder / "report.json")


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Path]:
    """Write reports, or any text, into a folder: name -> what lies there."""

    def write(**files: Any) -> Path:
        for name, content in files.items():
            path = tmp_path / "runs" / name / "report.json"
            path.parent.mkdir(parents=True)
            path.write_text(content if isinstance(content, str) else content.model_dump_json(), encoding="utf-8")
        return tmp_path / "runs"

    return write


def page_of(folder: Path) -> Page:
    return Page(build_page(find_runs(folder)))


def test_real_reports_are_all_on_the_page(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(real)]) == 0
    said = capsys.readouterr()
    assert not said.err
    assert said.out.startswith("Best on digits: ")
    assert f"{real / 'report.html'} shows 3 runs." in said.out
    page = Page((real / "report.html").read_text(encoding="utf-8"))
    fused = json.loads((real / "fuse/report.json").read_text())
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert fused["verdict"] in words
    assert f"{100 * fused['child']['accuracy']:.2f}" in words
    for name in ("fuse", "deep/er/path", "match"):
        assert name in page.inside("h3").split("\n")
    assert "Path between the parents" in words
    changed = "align.criterion.distance=cosine, refit=none, calibration.images=64, calibration.batch_size=64, seed=3"
    assert changed in words
    matched = json.loads((real / "match/report.json").read_text())["matchings"][0]
    for group in matched["groups"]:
        assert f"{group['channels']} channels, {group['moved']:,} moved" in words
        assert f"→ {group['correlation_after']:.2f}" in words
    assert len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 3
    assert not list(real.rglob("*.tmp"))


def test_the_page_is_the_same_for_the_same_reports(real: Path) -> None:
    assert build_page(find_runs(real)) == build_page(find_runs(real))


def test_nothing_is_requested_from_anywhere(real: Path) -> None:
    text = build_page(find_runs(real))
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or (tag, value) == ("link", "data:,"), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], attributes
    style, script = page.inside("style"), page.inside("script")
    assert "@import" not in style
    assert "url(" not in style
    assert not re.search(r"fetch|XMLHttp|import|https?:", script)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["style-src"] == f"'sha256-{digest(style)}'"
    assert rules["script-src"] == f"'sha256-{digest(script)}'"
    assert "http" not in policy
    assert "unsafe" not in policy


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_can_be_read_without_eyes_or_mouse(real: Path) -> None:
    page = page_of(real)
    assert page.all("html")[0]["lang"] == "en"
    assert page.inside("title")
    tags = Counter(tag for tag, _ in page.elements)
    assert [tags[tag] for tag in ("header", "main", "footer", "h1")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = page.all("a")
    assert links[0] == {"href": "#runs", "class": "skip"}
    assert {str(link["href"])[1:] for link in links} <= set(ids)
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert all(button["type"] == "button" for button in page.all("button"))
    assert tags["button"] > 10
    (field,), (label,) = page.all("input"), page.all("label")
    assert label["for"] == field["id"]
    assert tags["details"] == tags["summary"] >= 3
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    regions = [part for part in page.all("div") if part.get("role") == "region"]
    assert len(regions) == tags["table"]
    assert all(region["aria-label"] and region["tabindex"] == "0" for region in regions)


def test_a_broken_report_is_named_and_the_others_are_shown(
    runs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs(good=fusion_report(), torn='{"parents": [', other='{"epochs": 3}')
    (folder / "settings.json").write_text('{"seed": 1}')
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 2
    assert "other/report.json is no report of depfuse: parents: Field required" in lines[0]
    assert "torn/report.json" in lines[1]
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "2 reports could not be read" in page.inside("h2")
    assert "torn/report.json is no report of depfuse" in page.words
    assert page.inside("h3") == "good"
    assert "settings.json" not in page.words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "holds no report: `depfuse fuse`, `path`, `match` and `eval` write one"),
        (lambda folder: folder.write_text("{}"), "is a file: give the folder that holds the reports"),
        (lambda folder: broken(folder, 1), "its only report cannot be read: 0/report.json: the report cannot be read"),
        (lambda folder: broken(folder, 2), "none of its 2 reports can be read: 0/report.json: "),
    ],
)
def test_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], object], words: str
) -> None:
    folder, out = tmp_path / "runs", tmp_path / "page.html"
    make(folder)
    assert main(["report", str(folder), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert str(folder) in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".json" and path.is_file() and path != folder]


def broken(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "report.json").write_bytes(b"\xff{")


def test_only_pages_are_written(runs: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs(good=fusion_report())
    before = (folder / "good/report.json").read_bytes()
    assert main(["report", str(folder), "--out", str(folder / "good/report.json")]) == 2
    assert "must end in .html" in capsys.readouterr().err
    assert (folder / "good/report.json").read_bytes() == before


def test_text_of_reports_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"<img src=x onerror=alert(1)> \xff")
    parents = [network(0.9, f"{HOSTILE}.pt"), network(0.8, "b.pt")]
    changes = dict.fromkeys(("verdict", "architecture", "data"), HOSTILE)
    report = fusion_report(
        parents=parents,
        recipe={HOSTILE: [HOSTILE]},
        command=["depfuse", HOSTILE],
        not_converged=[HOSTILE],
        **changes,
    )
    folder.mkdir()
    fields = report.model_dump(mode="python")
    (folder / "report.json").write_text(json.dumps(fields))
    (folder / f"{HOSTILE.replace('/', '')} report.json").write_text(HOSTILE)
    assert main(["report", str(tmp_path), "-q"]) == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["script"] == 1
    assert tags["img"] == 0
    assert page.words.count(HOSTILE) >= 6


def test_reports_at_their_limits() -> None:
    nothing = ScoreValues(accuracy=float("nan"), loss=None, calibration_error=None)
    report = fusion_report(parents=[], ensemble=nothing, naive=nothing, recipe={}, command=[], images=0)
    path = PathReport(**{**path_report().model_dump(), "path": [], "naive_path": [], "methods": []})
    page = Page(build_page(Runs(Path("runs"), (Run("a", report), Run("b", path)), ())))
    assert "not finite" in page.words
    assert "nothing finite to draw" in page.words


def test_the_line_at_the_top(runs: Callable[..., Path]) -> None:
    good = fusion_report(child=network(0.94), ensemble=ScoreValues.of(scores(0.9)))
    folder = runs(one=fusion_report(), two=good, cifar=fusion_report(data="cifar10", child=network(0.5)))
    assert best_sentences(find_runs(folder).runs) == [
        "Best on cifar10: parent second.safetensors, 92.00 % (cifar). The ensemble of first.safetensors and"
        " second.safetensors reaches 95.00 % (cifar), where running 2 networks is affordable.",
        "Best on digits: the child, 94.00 % (two). The ensemble of first.safetensors and second.safetensors reaches"
        " 95.00 % (one), where running 2 networks is affordable.",
    ]


def test_settings_that_differ_from_the_default() -> None:
    recipe = {"refit": "ridge", "solver": "emd", "weights": [0.5, 0.25], "universe": True, "later": None}
    written = settings_text(changed_settings(recipe))
    assert written == "refit=ridge, merge.weights=0.5,0.25, align.through=universe, later=none"


def test_names_are_paths_below_the_folder(runs: Callable[..., Path]) -> None:
    folder = runs(a=fusion_report())
    shutil.copy(folder / "a/report.json", folder / "b.json")
    shutil.copy(folder / "a/report.json", folder / "report.json")
    assert [run.name for run in find_runs(folder).runs] == ["a", "b.json", "report.json"]
    with pytest.raises(ReportError, match="does not exist"):
        find_runs(folder / "c")


@pytest.fixture(scope="module")
def many(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 runs of three kinds."""
    folder = tmp_path_factory.mktemp("many")
    kinds = [json.loads((real / name / "report.json").read_text()) for name in ("fuse", "deep/er/path", "match")]
    for number in range(200):
        fields = kinds[number % 3]
        fields["recipe"]["seed"] = number
        (folder / f"sweep-{number:03d}").mkdir()
        (folder / f"sweep-{number:03d}/report.json").write_text(json.dumps(fields))
    return folder


def test_200_runs_stay_small(many: Path) -> None:
    text = build_page(find_runs(many))
    assert len(text.encode()) < 5_000_000
    page = Page(text)
    assert len([part for part in page.all("details") if part.get("class") == "run"]) == 200


# Tables that scroll, and texts of drawings that meet each other or leave the drawing.
MEASURED = """page => {
  const found = [];
  for (const table of page.querySelectorAll('.wide'))
    if (table.scrollWidth > table.clientWidth) found.push('table ' + table.getAttribute('aria-label'));
  for (const drawing of page.querySelectorAll('svg.chart')) {
    const edge = drawing.getBoundingClientRect();
    const texts = [...drawing.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([text, box], number) => {
      if (box.left < edge.left || box.right > edge.right || box.bottom > edge.bottom) found.push('cut ' + text);
      for (const [other, place] of texts.slice(number + 1))
        if (box.left < place.right && place.left < box.right
            && box.top + 2 < place.bottom && place.top + 2 < box.bottom)
          found.push(text + ' meets ' + other);
    });
  }
  return found;
}"""


def measured(page: Path, width: int) -> list[str]:
    """What of a page is cut in a window of some width, and which texts of its drawings meet."""
    (body,) = Page(dumped(page, width)).all("body")
    return json.loads(body["data-found"] or "[]")


def dumped(page: Path, width: int, *options: str) -> str:
    """The page as the browser has it after its scripts have run, in a window of some width."""
    script = (
        "document.body.dataset.fits = inside.documentElement.scrollWidth <= width;"
        f" document.body.dataset.found = JSON.stringify(({MEASURED})(inside));"
    )
    return chromium.dumped(page, width, script, *options)


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(real: Path, tmp_path: Path, width: int) -> None:
    text = build_page(find_runs(real))
    page = tmp_path / "page.html"
    page.write_text(re.sub(r"<details ", "<details open ", text), encoding="utf-8")
    assert 'data-fits="true"' in dumped(page, width)


def test_tables_of_runs_are_not_cut_at_1280_pixels(tmp_path: Path) -> None:
    names = ("sweep-over-shares", "deep/er/another-sweep")
    recipe = {"align": {"criterion": {"name": "mixture", "share": 0.25}, "solver": {"name": "sinkhorn"}}, "seed": 3}
    parents = [network(0.9, "runs/resnet20-first.safetensors"), network(0.92, "runs/resnet20-second.safetensors")]
    reports: list[Any] = []
    for number in range(4):
        changes = {"recipe": recipe, "architecture": f"digits_resnet(width={number + 1})", "data": f"digits-{number}"}
        reports.append(PathReport.model_validate({**path_report().model_dump(), **changes, "parents": parents}))
        alike = {"agreement": 0.9, "agreement_with": [0.8, 0.7], "confidence": 0.6, "ensemble_loss": 1.0}
        scored = dict.fromkeys(("ensemble", "naive", "naive_renorm", "child"), alike)
        without = [{**alike, "path": parent.path} for parent in parents]
        reports.append(fusion_report(**changes, **scored, parents=without))
    runs = tuple(Run(f"{names[number % 2]}-{number}", report) for number, report in enumerate(reports))
    page = tmp_path / "page.html"
    text = build_page(Runs(Path("runs"), runs, ()))
    words = Page(text)
    assert {"Fusions", "Fusions without labels"} <= set(words.inside("h2").split("\n"))
    page.write_text(re.sub(r"<details ", "<details open ", text), encoding="utf-8")
    assert measured(page, 1280) == []


def test_buttons_sort_and_words_filter(many: Path, tmp_path: Path) -> None:
    text = build_page(find_runs(many))
    steps = (
        "const head = [...document.querySelectorAll('th')].find(cell => cell.textContent === 'Run');"
        "head.firstElementChild.click(); head.firstElementChild.click();"
        "const field = document.getElementById('filter'); field.value = 'sweep-19 SEED';"
        "field.dispatchEvent(new Event('input')); location.hash = '#run-192'; reveal();"
        "document.body.dataset.first = document.querySelector('tbody tr').textContent.slice(0, 9);"
        "document.body.dataset.sorted = head.getAttribute('aria-sort');"
        "document.body.dataset.open = document.querySelectorAll('details.run[open]').length;"
        "document.body.dataset.said = document.getElementById('shown').textContent;"
    )
    script = f"<script>{{ {steps} }}</script>"  # in a block: names are shared between scripts
    # The page's own policy would not let another script run.
    policy = re.sub("script-src &#x27;[^&]*&#x27;", "script-src &#x27;unsafe-inline&#x27;", text)
    page = tmp_path / "page.html"
    page.write_text(policy.replace("</body>", f"{script}</body>"), encoding="utf-8")
    found = Page(chromium.dom_of(page))
    (body,) = found.all("body")
    assert body["data-first"] == "sweep-199"
    assert body["data-sorted"] == "descending"
    assert body["data-open"] == "1"
    assert body["data-said"] == "10 of 200 runs"
