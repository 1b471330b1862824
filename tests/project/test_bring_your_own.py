"""The examples of the guide's pages on bringing one's own, hubs, outputs and different labels run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from depfuse import FusionResult

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide"


def run_examples(page: str, least: int) -> dict[str, object]:
    """Run the examples of a page, of which there are so many at least; return the names that they give."""
    names: dict[str, object] = {"__name__": "example"}
    examples = re.findall(r"^```python\n(.*?)^```$", (GUIDE / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(examples) >= least
    for example in examples:
        exec(compile(example, page, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")  # random networks, of which little is kept
def test_every_example_of_outputs_runs() -> None:
    torch.manual_seed(0)
    names = run_examples("outputs.md", 3)
    assert isinstance(names["kind"], torch.Tensor)
    assert names["kind"].shape == (200, 5)


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")  # random networks, of which little is kept
def test_every_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    result = run_examples("bring_your_own.md", 12)["result"]
    assert isinstance(result, FusionResult)
    assert (tmp_path / "child" / "config.json").is_file()
    printed = capsys.readouterr().out
    assert "FusionResult: 2 parents fused by preset fast" in printed
    assert "Keep " in printed
    assert "Without labels no accuracy is known." in printed


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_the_example_of_parents_with_different_labels_runs() -> None:
    torch.manual_seed(0)
    run_examples("labels.md", 1)


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning", "ignore::UserWarning")
def test_every_example_of_hubs_and_trainers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("transformers", "timm", "lightning"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    names = run_examples("hubs.md", 4)
    assert type(names["child"]) is names["Lit"]
    assert "parents" in (tmp_path / "child" / "README.md").read_text("utf-8")
