"""The page on files in the guide: its examples run."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from depfuse.errors import DepfuseWarning

TOP = Path(__file__).resolve().parents[2]


def test_the_examples_of_the_page_on_files_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (TOP / "docs" / "guide" / "files.md").read_text("utf-8")
    first, *others = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "checkpoints").symlink_to(TOP / "checkpoints")
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    exec(first, known)
    state = known["state"]
    assert isinstance(state, dict)
    assert len(others) == 5
    for block in others:
        known.pop("network", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DepfuseWarning)
            exec(block, known)
        found = known["network"].state_dict()  # type: ignore[attr-defined]
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())
