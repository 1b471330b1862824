"""Commands that are interrupted, or whose place cannot be written to: one sentence, and no file beside those before."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import NETWORK, Place

from depfuse.cli import main


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Take interruptions as a terminal's, also where what runs the tests ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("command", ["fuse", "path"])
def test_an_interrupted_fusion_leaves_no_file(place: Place, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (place.folder / "cut.py").write_text(
        f"{NETWORK}\nimport os\nimport signal\nfrom pathlib import Path\n\n"
        "RUNS = Path(__file__).with_name('runs')\n\n\n"
        "def count(network, inputs):\n"
        "    left = RUNS.read_bytes()\n"
        "    RUNS.write_bytes(left[1:])\n"
        "    if len(left) == 1:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n\n\n"
        "def cut():\n    network = tiny()\n    network.register_forward_pre_hook(count)\n    return network\n"
    )
    for seed, path in enumerate(place.parents):
        place.write_parent(path, seed, f"{place.folder / 'cut.py'}:cut")
    (place.folder / "runs").write_bytes(bytes(10))
    before = {path.name for path in place.folder.iterdir()} | {"__pycache__"}
    report = place.folder / "new" / "report.json"
    assert place.fuse("--report", report, command=command) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("depfuse: interrupted")
    assert (place.folder / "runs").read_bytes() == b"", "it was not interrupted while networks ran"
    assert {path.name for path in place.folder.iterdir()} - {"new"} <= before
    assert not list((place.folder / "new").glob("*"))


@pytest.mark.parametrize("words", [
    ["train", "{arch}", "--data", "{data}", "--epochs", "1", "--out", "{blocked}/new.safetensors"],
    ["path", "{a}", "{b}", "--trust", "{a}", "--trust", "{b}", "--report", "{blocked}/path.json"],
])  # fmt: skip
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_done(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    blocked = place.folder / "nets.py"  # a file where a folder is wanted
    names = {"arch": place.arch, "data": place.data, "blocked": blocked, "a": place.parents[0], "b": place.parents[1]}
    before = {path: path.read_bytes() for path in place.folder.iterdir() if path.is_file()}
    assert main([word.format(**names) for word in words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("depfuse: ")
    assert said.err.count("\n") == 1
    assert "nets.py" in said.err
    assert {path: path.read_bytes() for path in place.folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("words", [
    ["fuse", "{a}", "{long}", "--data", "{data}"],
    ["fuse", "{a}", "{b}", "--arch", "{arch}", "--data", "{long}"],
    ["fuse", "{a}", "{b}", "--data", "{data}", "--out", "{long}"],
    ["fuse", "{a}", "{b}", "--data", "{data}", "--out", "{long}.safetensors"],
    ["fuse", "{a}", "{b}", "--data", "{data}", "--preset", "{long}"],
    ["groups", "{long}"],
    ["inspect", "{long}"],
    ["report", "{long}"],
    ["demo", "--out", "{long}"],
])  # fmt: skip
def test_a_name_that_is_too_long_for_a_file_is_one_sentence(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    names = {"a": place.parents[0], "b": place.parents[1], "data": place.data, "arch": place.arch, "long": "x" * 300}
    assert main([word.format(**names) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("depfuse: ")
    assert said.count("\n") == 1
    assert "ame too long" in said


def test_output_that_is_closed_or_full_is_no_traceback(tmp_path: Path) -> None:
    """Nobody reads what is closed; a disk without room is said."""
    words = [sys.executable, "-m", "depfuse"]
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words, "recipes"], stderr=subprocess.PIPE, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*words, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("depfuse: the results cannot be printed (No space left on device)")
    assert done.stderr.count("\n") == 1
