"""Threads follow the CPU quota of a container, in any layout of control groups, unless somebody says how many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from depfuse.distributed.threads import ENOUGH, SET_BY_HAND, WAITING, available_cpus, considerate, limit_threads
from depfuse.models.demo import PARENTS

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
pytestmark = pytest.mark.skipif(BOUND < 2, reason="a quota of one CPU means nothing on one CPU")
V1 = "sys/fs/cgroup/cpu,cpuacct"


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write the files of control groups below a root."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


ONE_CPU = {
    "v2, a container that sees its own group alone": {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
    },
    "v2, a part of a CPU": {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "25000 100000\n"},
    "v2, a group above": {
        "proc/self/cgroup": "0::/user.slice/job/step\n",
        "sys/fs/cgroup/user.slice/job/step/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user.slice/job/cpu.max": "50000 50000\n",
    },
    "v1": {
        "proc/self/cgroup": "7:memory:/\n4:cpu,cpuacct:/box\n0::/\n",
        f"{V1}/box/cpu.cfs_quota_us": "100000\n",
        f"{V1}/box/cpu.cfs_period_us": "100000\n",
    },
    "v1, told the host's path": {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/0123\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "90000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    },
}
NO_QUOTA = {
    "no control groups": {},
    "v2 without one": {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
    "v2, the root of a host": {"proc/self/cgroup": "0::/\n"},
    "v1 without one": {
        "proc/self/cgroup": "4:cpu,cpuacct:/\n",
        f"{V1}/cpu.cfs_quota_us": "-1\n",
        f"{V1}/cpu.cfs_period_us": "100000\n",
    },
    "of another controller": {
        "proc/self/cgroup": "4:cpuset:/\n",
        "sys/fs/cgroup/cpuset/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpuset/cpu.cfs_period_us": "100000\n",
    },
    "more than there are": {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000000 100000\n"},
    "damaged": {"proc/self/cgroup": "0::/\n::\n", "sys/fs/cgroup/cpu.max": "one two three\n"},
}


@pytest.mark.parametrize("files", ONE_CPU.values(), ids=ONE_CPU)
def test_a_quota_of_one_cpu_is_found(files: dict[str, str], tmp_path: Path) -> None:
    root = tree(tmp_path, files)
    assert available_cpus(root) == 1
    assert considerate({}, root) == {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("files", NO_QUOTA.values(), ids=NO_QUOTA)
def test_without_a_quota_the_number_stays(files: dict[str, str], tmp_path: Path) -> None:
    root = tree(tmp_path, files)
    assert available_cpus(root) == BOUND
    assert considerate({}, root) == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_a_part_of_a_cpu_more_counts_as_one(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "110000 100000\n"})
    assert available_cpus(root) == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_that_is_said_stays(name: str, tmp_path: Path) -> None:
    root = tree(tmp_path, ONE_CPU["v1"])
    assert considerate({name: "3"}, root) == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", WAITING)
def test_a_way_of_waiting_that_is_said_stays(name: str, tmp_path: Path) -> None:
    assert considerate({name: "1"}, tmp_path) == {}


def test_a_program_is_left_as_it_is_until_it_asks() -> None:
    program = (
        "import os, torch; os.environ.pop('OMP_NUM_THREADS', None); torch.set_num_threads(64)\n"
        "import depfuse; depfuse.fuse\n"
        "from depfuse.distributed.threads import available_cpus, limit_threads\n"
        "assert torch.get_num_threads() == 64\n"
        "assert limit_threads() == torch.get_num_threads() == available_cpus()\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_threads_that_are_said_are_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = torch.get_num_threads()
    assert limit_threads() == before == torch.get_num_threads()


def test_the_command_s_threads_wait_asleep() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    program = (
        "import sys; sys.argv = ['depfuse', '--version']\n"
        "from depfuse.__main__ import main; main()\n"
        "import torch; torch.zeros(8)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], env={**environment, "OMP_DISPLAY_ENV": "true"}, capture_output=True, text=True
    )
    if "OMP_WAIT_POLICY" not in shown.stderr:
        pytest.skip("this OpenMP does not show what it was told")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr


UNSAID = {name: value for name, value in os.environ.items() if name not in SET_BY_HAND}
WITHIN = (
    "from depfuse.distributed.threads import chosen_by_work, suit_threads\n"
    "with chosen_by_work({environment}):\n"
    "    import torch\n"
    "    before = torch.get_num_threads()\n"
    "    suit_threads({work})\n"
    "    assert torch.get_num_threads() == {expected}, torch.get_num_threads()\n"
    "assert torch.get_num_threads() == before\n"
)


@pytest.mark.parametrize(
    ("first", "environment", "work", "expected"),
    [
        ("", {}, ENOUGH - 1, "1 < before"),
        ("", {}, ENOUGH, "before"),
        ("", {"MKL_NUM_THREADS": "2"}, ENOUGH - 1, "before"),
        ("import torch\n", {}, ENOUGH - 1, "before"),
    ],
    ids=["small", "large", "said", "a program's own"],
)
def test_small_networks_take_one_thread_where_nobody_said_how_many(
    first: str, environment: dict[str, str], work: float, expected: str
) -> None:
    program = first + WITHIN.format(environment=environment, work=work, expected=expected)
    subprocess.run([sys.executable, "-c", program], env=UNSAID, check=True)


@pytest.mark.parametrize(("said", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)], ids=["unsaid", "said"])
def test_a_command_with_small_networks_takes_one_thread(said: dict[str, str], threads: int, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ["eval", str(PARENTS[0]), "--data", "digits", "--quiet", "--report", str(report)]
    subprocess.run([sys.executable, "-m", "depfuse", *words], env={**UNSAID, **said}, check=True)
    assert json.loads(report.read_text(encoding="utf-8"))["environment"]["threads"] == threads
