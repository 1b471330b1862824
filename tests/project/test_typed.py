"""After the README's install, editors and type checkers see the types of the package."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch
from depfuse import FusionResult, fuse, load

result = fuse([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)], "fast", torch.rand(8, 2))
reveal_type(result)
reveal_type(load)
text: int = result.verdict
fuse([], colour="red")
"""


@pytest.mark.slow
def test_a_type_checker_sees_the_package_after_an_editable_install(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    project = tmp_path / "project"
    project.mkdir()
    for name in ("depfuse", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (TOP / name).is_dir() else shutil.copy
        copy(TOP / name, project / name)
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    # What this environment has, so that nothing is downloaded; not the package itself.
    purelib = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    (purelib / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), *site.getsitepackages()}) + "\n")
    install = ["install", "--no-deps", "--no-build-isolation", "--quiet", "--editable", str(project)]
    environment = {"PATH": "", "HOME": str(tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, *install], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "script.py").write_text(SCRIPT)
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--python-executable",
            python,
            "--cache-dir",
            str(tmp_path / "cache"),
            "script.py",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    said = checked.stdout
    assert 'Revealed type is "depfuse.fusion.result.FusionResult"' in said, said + checked.stderr
    assert "-> torch.nn.modules.module.Module" in said
    assert 'Incompatible types in assignment (expression has type "str", variable has type "int")' in said
    assert 'Unexpected keyword argument "colour" for "fuse"' in said
