"""Help, reports and every mistake in arguments, paths and headers of files are answered without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint

RUN = """
import contextlib, io, json, sys
from depfuse.cli import main
answers = []
for line in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(line.split())
    answers.append(("torch" in sys.modules, code, said.getvalue()))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of which each has one fault that its header shows, and a whole one."""
    folder = tmp_path_factory.mktemp("files")
    for name, architecture in (("good", "digits_resnet"), ("code", "nets.py:net")):
        write_checkpoint(folder / f"{name}.safetensors", {"w": torch.ones(2)}, Card(architecture=architecture))
    (folder / "empty.safetensors").touch()
    (folder / "text.safetensors").write_text("no weights at all")
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-4])
    header = json.dumps({"__metadata__": {"depfuse_card": "{}"}}).encode()
    (folder / "card.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "runs").mkdir()
    return folder


@pytest.fixture(scope="module")
def answers(files: Path) -> dict[str, tuple[bool, int, str]]:
    """For each command line, in one process: whether torch is imported after it, the exit code, and what was said."""
    lines = [*HELP, *MISTAKES]
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=files, input=json.dumps(lines), capture_output=True, text=True, check=True
    )
    return dict(zip(lines, json.loads(done.stdout), strict=True))


COMMANDS = ("groups", "train", "fuse", "tune", "eval", "match", "path", "report", "recipes")
HELP = ["--help", "--version", "recipes", *(f"{name} --help" for name in COMMANDS)]


GOOD = "good.safetensors"
MISTAKES = {
    "eval nothing.pt --data digits": "there is no file nothing.pt",
    "eval runs --data digits": "runs is a folder, not a checkpoint file",
    "eval empty.safetensors --data digits": "empty.safetensors is empty",
    "eval text.safetensors --data digits": "text.safetensors is no checkpoint",
    "eval cut.safetensors --data digits": "cut.safetensors is damaged or cut off",
    "eval card.safetensors --data digits": "its card cannot be read: architecture",
    "eval code.safetensors --data digits": "which is code of somebody's own",
    f"eval {GOOD}": "no data are named",
    f"eval {GOOD} --data digit": "did you mean digits?",
    f"eval {GOOD} --data digits --mean x": "--mean 'x' must be numbers",
    f"eval {GOOD} --data digits --arch resnet19": "there is no built-in network resnet19",
    f"eval {GOOD} --data digits --trust other.pt": "--trust other.pt is none of the files that are read",
    f"eval {GOOD} --data digits --report {GOOD}": "would overwrite an input",
    f"eval {GOOD} --data digits --batch 3": "No such option",
    f"fuse nothing.pt {GOOD} --data digits": "there is no file nothing.pt",
    f"fuse {GOOD} {GOOD} --data digits --out child.pt": "the name must end in .safetensors",
    f"fuse {GOOD} {GOOD} --data digits --classes 0-4": "--classes is given 1 times for 2 parents",
    f"path nothing.pt {GOOD} --data digits": "there is no file nothing.pt",
    f"match nothing.pt {GOOD} --data digits": "there is no file nothing.pt",
    f"tune nothing.pt {GOOD} --data digits": "there is no file nothing.pt",
    "groups resnet19": "there is no built-in network resnet19",
    "groups digits_resnet --plot a.bmp": "a plot's name must end in",
    "train digits_resnet --data digits --out a.pt": "the name must end in .safetensors",
    "train digits_resnet --data digit --out a.safetensors": "did you mean digits?",
    "train digits_resnet --data digits --out a.safetensors --labels x": "is not like 3, 0-4 or 0-4:0.9",
    "report nowhere": "nowhere does not exist",
    "report runs": "runs",
    "report runs --out page.txt": "the page's name must end in .html",
    "fuses": "No such command",
}


@pytest.mark.parametrize("line", HELP)
def test_help_needs_no_torch(answers: dict[str, tuple[bool, int, str]], line: str) -> None:
    assert answers[line][:2] == [False, 0]


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_answered_without_torch(answers: dict[str, tuple[bool, int, str]], line: str) -> None:
    imported, code, said = answers[line]
    assert MISTAKES[line] in said
    assert (imported, code) == (False, 2)
