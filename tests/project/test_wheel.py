"""The wheel needs no repository: built, installed elsewhere, it fuses what comes with it. One version everywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import depfuse

TOP = Path(__file__).resolve().parents[2]
SETUPTOOLS = 77  # the oldest that pyproject.toml builds with


def test_the_version_is_one_everywhere() -> None:
    said = {
        "pyproject.toml": r'^version = "(.*)"$',
        "CITATION.cff": r"^version: (.*)$",
        "README.md": r"^  version = {(.*)}$",
        "CHANGELOG.md": r"^## (\d.*)$",
    }
    for name, form in said.items():
        found = re.search(form, (TOP / name).read_text("utf-8"), re.MULTILINE)
        assert found is not None, name
        assert found[1] == depfuse.__version__, name


@pytest.mark.slow
def test_a_wheel_runs_without_the_repository(tmp_path: Path) -> None:
    source, installed, elsewhere = tmp_path / "source", tmp_path / "installed", tmp_path / "elsewhere"
    shutil.copytree(TOP / "depfuse", source / "depfuse", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    here = int(version("setuptools").split(".")[0]) >= SETUPTOOLS
    build = [*pip, "wheel", "-q", "--no-deps", *["--no-build-isolation"] * here, "-w", str(tmp_path), str(source)]
    built = subprocess.run(build, capture_output=True, text=True, timeout=300)
    if not here and "No matching distribution found for setuptools" in built.stderr:
        pytest.skip(f"a wheel is built by setuptools {SETUPTOOLS} or newer, which cannot be fetched here")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("depfuse-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    there = {
        path.relative_to(TOP).as_posix()
        for path in (TOP / "depfuse").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there <= names, there - names
    install = [*pip, "install", "-q", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(install, check=True, timeout=300)
    own = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    code = "import depfuse; print(depfuse.__file__); from depfuse.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo"], cwd=elsewhere, env=own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert "Keep the child: of 500 test images it gets 9" in done.stdout
    assert list(elsewhere.iterdir()) == []
