"""Nothing of depfuse needs a POSIX system."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import depfuse
from depfuse.study.worker_lock import WorkerLock

POSIX_ONLY = (
    "crypt", "fcntl", "grp", "nis", "ossaudiodev", "pty", "pwd", "readline", "resource", "spwd", "syslog", "termios",
    "tty",
)  # fmt: skip
POSIX_ONLY_ATTRIBUTES = {
    "os.chown", "os.fork", "os.forkpty", "os.getuid", "os.geteuid", "os.getgid", "os.getpgid", "os.killpg", "os.mkfifo",
    "os.setsid", "os.sched_getaffinity", "os.statvfs", "os.sysconf", "os.uname", "os.O_NONBLOCK", "os.O_DIRECTORY",
    "signal.SIGALRM", "signal.SIGHUP", "signal.SIGKILL", "signal.SIGUSR1", "signal.SIGUSR2", "signal.alarm",
    "signal.setitimer", "signal.pause",
}  # fmt: skip
MODULES = [m.name for m in pkgutil.walk_packages(depfuse.__path__, "depfuse.") if m.name != "depfuse.__main__"]


def imported(node: ast.AST) -> set[str]:
    """The top-level modules that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {node.module.partition(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


def test_no_module_imports_what_only_posix_has() -> None:
    files = list(Path(depfuse.__path__[0]).rglob("*.py"))
    assert len(files) > 200
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not imported(node) & set(POSIX_ONLY), f"{file.name}:{node.lineno}"
    (statement,) = ast.parse("from resource import getrusage").body
    assert imported(statement) & set(POSIX_ONLY)


@pytest.mark.slow
def test_every_module_is_imported_where_posix_only_ones_are_missing() -> None:
    assert "depfuse.study.worker_lock" in MODULES
    program = (
        "import importlib, sys\n"
        f"for name in {POSIX_ONLY}: sys.modules[name] = None\n"
        f"for name in {MODULES}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tried(node: ast.AST) -> bool:
    """Whether a block expects that an attribute may be missing."""
    return isinstance(node, ast.With) and "suppress(AttributeError" in ast.unparse(node.items[0])


def test_nothing_is_called_without_asking_that_only_posix_has() -> None:
    found = []
    for file in Path(depfuse.__path__[0]).rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        expected = {id(node) for block in ast.walk(tree) if tried(block) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in expected:
                name = ast.unparse(node)
                found += [f"{file.name}:{node.lineno}: {name}"] if name in POSIX_ONLY_ATTRIBUTES else []
    assert found == []


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_is_alive_as_long_as_its_process(tmp_path: Path, killed: bool) -> None:
    own = WorkerLock(tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\nfrom depfuse.study.worker_lock import WorkerLock\n"
        "lock = WorkerLock(Path(sys.argv[1]))\nprint(lock.name, flush=True)\nsys.stdin.read()\nlock.close()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        name = worker.stdout.readline().strip()
        assert own.alive(own.name)
        assert own.alive(name)
        if killed:
            worker.kill()
        worker.communicate()
    assert not own.alive(name)
    assert not own.alive("a worker that never was")
    own.close()
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_modules_are_imported_ends_the_command(tmp_path: Path) -> None:
    """Torch's own modules swallow it: where it was raised in one of them, the command went on as if nothing was."""
    swallowing = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    (tmp_path / "torch.py").write_text(swallowing)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "depfuse", "groups", "digits_resnet"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "depfuse: interrupted\n")
