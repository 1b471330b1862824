"""Fixtures that the tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from depfuse.data import DataSet, load_data

# Every run draws the same examples, so that what fails is the change's doing; others by --hypothesis-profile=default.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the processor; what they start inherits it
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Find the folder of other people's networks and data; the tests that need it skip without it."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("DEPFUSE_SHARED", beside))
    if not (folder / "checkpoints").is_dir():
        pytest.skip("needs other people's checkpoints: set DEPFUSE_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return load_data("digits")


def assert_one_sentence(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    """Check that a command was refused: code 2 and one line on standard error that holds the words."""
    stdout, stderr = capsys.readouterr()
    assert code == 2
    assert stdout == ""
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("depfuse: ")
    for word in words:
        assert word in stderr


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """Experiments set the number of torch's threads; the tests after them shall not feel it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
