"""The documentation: what its examples show is true, and its site builds without a warning."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import warnings
from pathlib import Path

import chromium
import pytest
import torch

from depfuse.errors import DepfuseWarning

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_on_groups_shows_what_is_printed() -> None:
    failed, tried = doctest.testfile(str(DOCS / "methods" / "groups.md"), module_relative=False)
    assert tried > 8
    assert failed == 0


def test_the_examples_of_data_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```", (DOCS / "guide" / "data.md").read_text("utf-8"), re.M | re.S)
    assert len(examples) == 6
    exec("\n".join(examples), {})


def test_the_examples_of_detectors_run() -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (DOCS / "guide" / "detectors.md").read_text("utf-8"), re.M | re.S)
    assert len(examples) == 2
    scope: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)  # of networks with random weights
        exec("\n".join(examples), scope)
    assert scope["maps"](scope["result"].child, scope["pictures"])["cls_logits"].shape[-1] == 5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_whole_detectors_of_torchvision_are_fused(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "guide" / "detectors.md").read_text("utf-8")
    example = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)[0].replace("fcos_resnet50_fpn", family)
    before, found, after = example.partition("known = ")
    if family.startswith("ssd"):
        said = re.findall(r"`(Parents\(parents, .*?)`", page)[0]
        found = f"known = {said}\n"
        after = after.partition("\n")[2]
        before = before.replace('detector(2, "b.pth")', 'detector(3, "b.pth")')
    scope: dict = {}
    exec(before.partition("parents = ")[0], scope)
    for seed, (name, classes) in enumerate([("a.pth", 3), ("b.pth", 3 if family.startswith("ssd") else 2)]):
        torch.manual_seed(seed)
        network = scope["detector"](classes)
        for own in network.modules():
            if isinstance(own, torch.nn.BatchNorm2d):
                own.momentum = None
        with torch.no_grad():
            scope["maps"](network.train(), torch.rand(8, 3, 64, 64))  # random weights need statistics
        torch.save(network.state_dict(), name)
    torch.save(torch.rand(6, 3, 64, 64), "pictures.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        exec(before + found + after, scope)
    result, child = scope["result"], scope["detector"](5, "child.pth")
    assert result.recipe.task.name == "detection"
    assert result.groups.proof_error < 1e-9
    assert len(result.groups.free) > 30
    child.score_thresh = 0.0
    boxes = child(list(torch.rand(2, 3, 64, 64)))
    assert all(len(own["boxes"]) > 0 and int(own["labels"].max()) < 5 for own in boxes)


def test_the_design_names_the_rooms_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from reference import floors

    named = re.findall(r"^\| `(\w+)` \|", (DOCS / "design.md").read_text("utf-8"), re.MULTILINE)
    there = {path.stem for path in (DOCS.parent / "depfuse").glob("[a-z]*") if path.suffix in ("", ".py")}
    assert named == [name for name in floors() if name in there]


def test_the_reference_has_every_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from reference import modules, rooms

    named = [name for room in rooms() for name in modules(room)]
    assert len(named) == len(set(named)) > 150
    for name in ("depfuse.fusion.pipeline", "depfuse.groups.proof", "depfuse.align.solvers.emd"):
        assert name in named


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for module in ("sphinx", "furo", "myst_parser", "latex2mathml"):
        pytest.importorskip(module, reason="the site needs pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_first_page_fits_a_telephone_and_shows_its_pictures(site: Path, width: int) -> None:
    script = (
        "const pictures = [...inside.images];"
        "document.body.dataset.fits = inside.documentElement.scrollWidth <= width;"
        "document.body.dataset.empty = pictures.filter(own => !own.complete || !own.naturalWidth).length;"
        "document.body.dataset.shown = inside.querySelectorAll('.pictures img').length;"
    )
    shown = chromium.dumped(site / "index.html", width, script)
    told = dict(re.findall(r'data-(fits|empty|shown)="(.*?)"', shown))
    assert told == {"fits": "true", "empty": "0", "shown": "3"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_for_nothing_from_elsewhere(site: Path) -> None:
    pages = {page.relative_to(site).as_posix(): page.read_text("utf-8") for page in site.rglob("*.html")}
    pages.pop("window.html", None)
    for page, text in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]*)"|<link[^>]* href="([^"]*)"', text)
        assert not [place for places in loaded for place in places if "//" in place], page
        formulas = re.findall(r"<math.*?</math>", text, re.DOTALL)
        assert not [formula for formula in formulas if "\\" in re.sub(r"<[^>]*>", "", formula)], page
    assert pages["api/align.html"].count("<math") > 20
    for page, content in {
        "index.html": "Proved, or refused",
        "methods/groups.html": "The smallest residual block: its layers from top to bottom",
        "methods/matching.html": "reweighted-random-walk",
        "guide/command_line.html": "depfuse tune",
        "guide/gallery.html": "5. Search",
        "results/halves.html": "ensemble, one head without labels",
        "design.html": "Proved or refused.",
        "api/fusion.html": "Fuse parents of one architecture into a child.",
    }.items():
        assert content in re.sub(r"<[^>]*>", "", pages[page]), page
