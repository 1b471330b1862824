"""Several processes give what one gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import shared_work
import torch

from depfuse.data import Augmentation, Loader, Preprocessing, Split
from depfuse.distributed import team as processes
from depfuse.distributed.device import resolve_device
from depfuse.errors import DeviceError, ProcessError

PROCESSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "command").mkdir()
    (folder / "plain.py").write_text(shared_work.USERS_FILE)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    """What two processes of one `torchrun` said, which fused two files and then went through the cases."""
    done = shared_work.torchrun(shared_work.__file__, str(folder / "found.pt"), str(folder / "plain.py"))
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_fuse_and_one_of_them_speaks(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.stdout.count("Keep the ") == 1
    assert "2 calibration batches" not in done.stderr
    assert json.loads((folder / "command" / "report.json").read_text())["command"][:2] == ["depfuse", "fuse"]
    assert {path.name for path in (folder / "command").iterdir()} == {"child.safetensors", "report.json"}


@pytest.fixture(scope="module")
def both(done: subprocess.CompletedProcess[str], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two processes found, and what one finds."""
    users_file = folder / "plain.py"
    before = sys.argv
    sys.argv = [*sys.argv, str(users_file)]
    try:
        return torch.load(folder / "found.pt"), shared_work.cases()
    finally:
        sys.argv = before


@pytest.mark.parametrize("case", shared_work.CASES)
def test_two_processes_find_what_one_does(case: str, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    many, one = both[0]["cases"][case], both[1][case]
    assert many.keys() == one.keys()
    for key, tensor in one.items():
        if case in ("moments", "many parents", "a network of the user's"):
            torch.testing.assert_close(many[key], tensor, rtol=1e-12, atol=1e-9)
        elif tensor.is_floating_point():
            torch.testing.assert_close(many[key], tensor, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(many[key], tensor)


def test_batches_are_dealt_out(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert both[0]["count"] == PROCESSES
    assert both[0]["seen"].tolist() == [135, 90]
    assert both[0]["seen of one batch"].tolist() == [225, 0]


def test_a_network_that_cannot_be_sent_is_run_by_the_first_process(
    both: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    (warning,) = both[0]["warned"]
    assert "cannot be sent to the other processes" in warning
    for key, tensor in both[1]["reset"].items():
        assert torch.equal(both[0]["alone"][key], tensor)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("helper", "DataError: no"),
        ("first", "DataError: no"),
        ("unexpected", "KeyError: 'x'"),
        ("state", "is not the state of a training"),
        ("batch", "RecipeError: batch_size 3 leaves 1 images of 1297 to each of 2 processes"),
        ("diverged", "RecipeError: training diverged in epoch 1"),
    ],
)
def test_a_failure_is_told_and_the_work_goes_on(
    where: str, said: str, both: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    assert said in both[0]["failures"][where]


def test_a_training_goes_on_where_it_was_cut_off(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    whole = both[0]["cases"]["training"]
    assert all(torch.equal(tensor, whole[key]) for key, tensor in both[0]["resumed"].items())


@pytest.mark.parametrize("augment", [None, Augmentation(flip=True, translate=1, cutout=2)])
@pytest.mark.parametrize(("count", "size"), [(450, 100), (41, 10), (28, 3), (19, 2), (13, 4), (7, 9), (57, 7)])
def test_batches_of_a_part_are_the_batches_of_the_whole(count: int, size: int, augment: Augmentation | None) -> None:
    split = Split(torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8), torch.arange(count))
    loader = Loader(split, Preprocessing(), batch_size=size, augment=augment, seed=3)
    whole = list(loader)
    for start in range(len(whole)):
        for end in range(start + 1, len(whole) + 1):
            part = list(loader.batches(start, end))
            assert len(part) == end - start
            for own, expected in zip(part, whole[start:end], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "devices", "said"),
    [
        ("cuda", 1, "2 processes were started here for 1 CUDA device: give --nproc-per-node 1"),
        (None, 1, "2 processes were started here for 1 CUDA device: give --nproc-per-node 1"),
        ("cuda:1", 2, "cuda:1 is one device for 2 processes"),
    ],
)
def test_each_process_needs_a_device_of_its_own(
    name: str | None, devices: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(PROCESSES))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    team = processes.Team(None, 0, PROCESSES)
    with processes.leading(team), pytest.raises(DeviceError, match=said):
        resolve_device(name)


def test_helpers_left_in_the_middle_are_not_called_again() -> None:
    team = processes.Team(None, 0, PROCESSES)
    with pytest.raises(ZeroDivisionError), team.at_work():
        raise ZeroDivisionError
    with pytest.raises(ProcessError, match="an earlier failure left the other processes"), team.at_work():
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "after"), [(0, 0.0), (1, 2.0)])
def test_when_a_process_dies_the_others_stop(rank: int, after: float) -> None:
    started = time.perf_counter()
    done = shared_work.torchrun(shared_work.__file__, "die", str(rank), str(after))
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL) received by PID" in done.stderr
    assert re.search(rf"rank\s*: {rank} ", done.stderr)
    assert time.perf_counter() - started < 400  # the others would wait for 600 s
