"""The gallery: every script runs, draws its picture, and reaches what its head says, but for a machine's rounding.

So does the notebook, in a kernel of its own, and shows what it speaks of.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "experiments" / "gallery" / "notebook.ipynb"
SCRIPTS = sorted(
    (ROOT / "experiments" / "gallery").glob("step*.py"),
    key=lambda script: (len(script.name.split("_")[0]), script.name),
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Run a script as from its folder, and look at its picture."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run_script(name: str) -> Any:
        picture = tmp_path / f"{name}.png"
        reached = importlib.import_module(f"experiments.gallery.{name}").main(picture)
        committed = ROOT / "experiments" / "gallery" / picture.name
        assert committed.stat().st_size < 100_000
        with Image.open(picture) as drawn, Image.open(committed) as shown:
            assert drawn.format == shown.format == "PNG"
            assert drawn.size == shown.size
        return reached

    yield run_script
    torch.set_num_threads(threads)


def test_two_fused_know_what_both_know(run) -> None:
    reached = run("step1_fuse_two")
    assert reached["child"] > max(reached["parent a"], reached["parent b"]) + 15
    assert reached["child"] > reached["plain average"] + 25


def test_groups_are_seen_and_proved(run, capsys) -> None:
    groups = run("step2_see_groups")
    assert [(group.name, group.size) for group in groups.free] == [
        ("conv1", 16), ("layer1.conv1", 16), ("layer2.conv1", 32), ("layer2.conv2", 32),
    ]  # fmt: skip
    assert groups.proof_error < 1e-12
    assert "4 free groups, 96 channels, 99.9% of the parameters; proved" in capsys.readouterr().out


@pytest.mark.slow
def test_matchings_differ_in_what_they_reach(run) -> None:
    reached = run("step3_compare_matchings")
    assert len(reached) == 5
    assert max(reached, key=reached.__getitem__) == "activations, emd"
    assert reached["activations, emd"] > reached["weights, emd"] + 10


@pytest.mark.slow
def test_three_parents_need_the_refit(run) -> None:
    reached = run("step4_three_parents")
    assert reached["child, refitted"] > reached["child, averaged"] + 20
    assert reached["child, refitted"] > reached["ensemble"] + 3


@pytest.mark.slow
def test_a_search_finds_more_than_the_defaults(run) -> None:
    defaults, best = run("step5_search").values()
    assert best > defaults + 5


@pytest.mark.slow
def test_upscalers_need_the_refit(run) -> None:
    pytest.importorskip("spandrel")
    reached = run("step6_upscale")
    assert reached["average"] < reached["parent a"] - 1
    assert reached["refitted"] > max(reached["average"], reached["aligned"]) + 0.7
    assert reached["refitted"] > max(reached["parent a"], reached["parent b"]) - 0.3


@pytest.mark.slow
def test_folds_become_one_as_good_as_their_ensemble(run) -> None:
    reached = run("step7_folds")
    folds = [reached[f"fold {number}"] for number in range(1, 6)]
    assert reached["average"] < sum(folds) / 5 - 0.4
    assert reached["child"] > max(folds)
    assert reached["child"] > reached["ensemble"] - 0.02


@pytest.mark.slow
def test_two_detectors_become_one_that_finds_all(run) -> None:
    pytest.importorskip("pycocotools", reason="mean average precision needs pycocotools")
    reached = run("step8_detectors")
    assert reached["child"] > 0.8 * reached["side by side"]
    assert reached["child"] > reached["average"] + 10


@pytest.mark.slow
def test_a_round_ends_with_the_clients_that_sent_something(run, capsys) -> None:
    reached = run("step9_federated")
    clients = {name: value for name, value in reached.items() if name.startswith("client")}
    assert len(clients) == 4
    assert reached["averaged once"] < 30
    assert reached["child"] > max(clients.values()) + 25
    assert re.search(r"left out: client 2: .*are not finite", capsys.readouterr().out)


@pytest.mark.slow
def test_folders_of_a_hub_become_one(run, capsys) -> None:
    reached = run("step10_hubs")
    assert reached["child"] > max(reached["folder_a"], reached["folder_b"]) + 30
    assert "from_pretrained(" in capsys.readouterr().out


def test_the_gallery_shows_every_script_and_picture() -> None:
    page = (ROOT / "docs" / "guide" / "gallery.md").read_text(encoding="utf-8")
    numbers = re.findall(r"^## (\d+)\. ", page, re.MULTILINE)
    assert [script.stem.split("_")[0] for script in SCRIPTS] == [f"step{number}" for number in numbers]
    for script in SCRIPTS:
        assert f"{{literalinclude}} ../../experiments/gallery/{script.name}\n" in page
        assert f"{{image}} ../../experiments/gallery/{script.stem}.png\n" in page
        assert f"python -m experiments.gallery.{script.stem}" in script.read_text(encoding="utf-8")


def test_the_notebook_runs_from_its_folder_and_shows_cards_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "clear its outputs"
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()
    shown: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    results = [output.data for output in shown if output.output_type == "execute_result"]
    cards = [found["text/html"] for found in results if "text/html" in found]
    fused, compared, with_scores, alike = cards
    assert all(card.count("<tr>") <= 30 for card in cards)
    assert "none yet" in fused
    assert "Keep the child" in compared
    assert "Keep the child" in with_scores
    assert with_scores.count("<details>") == 1, "groups are folded"
    assert "no accuracy is known" in alike
    assert len(results[0]["text/plain"].splitlines()) <= 20
    assert any("image/png" in found for found in results)
    assert not any(output.output_type == "error" for output in shown)
    assert [path.name for path in NOTEBOOK.parent.iterdir() if path.suffix == ".safetensors"] == []


def test_the_guide_leads_to_the_notebook() -> None:
    page = (ROOT / "docs" / "guide" / "gallery.md").read_text(encoding="utf-8")
    assert "{download}`experiments/gallery/notebook.ipynb <../../experiments/gallery/notebook.ipynb>`" in page
    assert "](docs/guide/gallery.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
