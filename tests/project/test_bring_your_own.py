"""The examples of the page on bringing one's own run, one after another, and that of parents with different labels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from depfuse import FusionResult

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "bring_your_own.md"


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")  # random networks, of which little is kept
def test_every_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "example"}
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 12
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    result = names["result"]
    assert isinstance(result, FusionResult)
    assert (tmp_path / "child" / "config.json").is_file()
    printed = capsys.readouterr().out
    assert "FusionResult: 2 parents fused by preset fast" in printed
    assert "Keep " in printed
    assert "Without labels no accuracy is known." in printed


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_the_example_of_parents_with_different_labels_runs() -> None:
    page = PAGE.with_name("labels.md")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    exec(compile(example, str(page), "exec"), {"__name__": "example"})
