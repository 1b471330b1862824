"""Nothing is imported that is not needed: help, reports and mistakes do without torch, fusions without more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.report import EvaluationReport, NetworkScores, describe_environment

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"

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


def evaluation() -> EvaluationReport:
    """A report as `depfuse eval` writes it."""
    scored = NetworkScores(path="a.safetensors", accuracy=0.5, loss=1.0, calibration_error=0.1)
    return EvaluationReport(
        networks=[scored],
        data="digits",
        preprocessing={},
        images=10,
        seconds={"evaluate": 1.0},
        environment=describe_environment(torch.device("cpu")),
        command=["depfuse", "eval"],
    )


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
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "bare.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    other = Card(architecture="resnet20")
    write_checkpoint(folder / "other.safetensors", {"w": torch.ones(2)}, other)
    wide = Card(architecture="digits_resnet(width=2)")
    write_checkpoint(folder / "wide.safetensors", {"w": torch.ones(2)}, wide)
    (folder / "runs").mkdir()
    (folder / "runs" / "own.txt").write_text("what a user keeps there")
    (folder / "images.npz").touch()
    (folder / "recipe.yaml").write_text("preset: fast")
    (folder / "reports").mkdir()
    (folder / "reports" / "report.json").write_text(evaluation().model_dump_json())
    return folder


@pytest.fixture(scope="module")
def answers(files: Path) -> dict[str, tuple[bool, int, str]]:
    """For each command line, in one process: whether torch is imported after it, the exit code, and what was said."""
    lines = [*HELP, *MISTAKES]
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=files, input=json.dumps(lines), capture_output=True, text=True, check=True
    )
    return dict(zip(lines, json.loads(done.stdout), strict=True))


LONG = ("train", "fuse", "tune", "match", "path")
COMMANDS = (*LONG, "groups", "eval", "inspect", "report", "recipes", "settings")
HELP = ["--help", "--version", "recipes", "settings", "settings align.solver", *(f"{name} --help" for name in COMMANDS)]
HELP += [*(f"{name} --help-all" for name in LONG), "report reports"]


GOOD = "good.safetensors"
PAIR = f"{GOOD} {GOOD} --data digits"
MISTAKES = {
    "eval nothing.pt --data digits": "there is no file nothing.pt",
    "eval runs --data digits": "runs is a folder, not a checkpoint file",
    "eval empty.safetensors --data digits": "empty.safetensors is empty",
    "eval text.safetensors --data digits": "text.safetensors is no checkpoint",
    "eval cut.safetensors --data digits": "cut.safetensors is damaged or cut off",
    "eval card.safetensors --data digits": "its card cannot be read: architecture",
    "eval code.safetensors --data digits": "which is code of somebody's own",
    f"eval {GOOD} {GOOD} {GOOD} --data digits --key a --key b": "2 keys for 3 files: give --key once, or once per file",
    f"fuse {GOOD} {GOOD} {GOOD} --data digits --key a --key b": "2 keys for 3 files",
    "inspect nothing.pt": "there is no file nothing.pt",
    "inspect text.safetensors": "text.safetensors is no checkpoint",
    "inspect runs": "runs is a folder, not a checkpoint file",
    f"eval {GOOD}": "no data are named",
    f"eval {GOOD} --data digit": "did you mean digits?",
    f"eval {GOOD} --data digits --mean x": "--mean 'x' must be numbers",
    f"eval {GOOD} --data digits --arch resnet19": "there is no built-in network resnet19",
    f"eval {GOOD} --data digits --trust other.pt": "--trust other.pt is none of the files that are read",
    f"eval {GOOD} --data digits --arch digits_resnet --trust {GOOD}": "does nothing beside --arch and --data",
    f"eval {GOOD} --arch digits_resnet --trust {GOOD}": "does nothing beside --arch",
    "eval bare.safetensors --data digits --trust bare.safetensors": "has nothing to trust",
    f"eval {GOOD} --data digits --report {GOOD}": "would overwrite an input",
    f"eval {GOOD} --data images.npz --report images.npz": "would overwrite an input",
    f"match {PAIR} --preset recipe.yaml --report recipe.yaml": "would overwrite an input",
    f"fuse {GOOD} {GOOD} --data images.npz --report images.npz": "would overwrite an input",
    f"fuse {PAIR} --preset recipe.yaml --report recipe.yaml": "would overwrite an input",
    f"path {PAIR} --distil 1 --labels-from runs/own.txt --report runs/own.txt": "would overwrite an input",
    f"ask {PAIR} --out runs": "runs holds other files than images to label",
    f"eval {GOOD} --data digits --batch 3": "No such option",
    f"fuse nothing.pt {GOOD} --data digits": "there is no file nothing.pt",
    f"fuse {GOOD} {GOOD} --data digits --out child.bin": "the name must end in .safetensors, or in .pth, .pt, .ckpt",
    f"fuse {GOOD} {GOOD} --data digits --classes 0-4": "--classes is given 1 time for 2 parents",
    f"eval {GOOD} --data digits --device gpu": "'gpu' is no device: give cpu, cuda, cuda:N or auto",
    f"fuse {GOOD} {GOOD} --data digits --device cuda:first": "'cuda:first' is no device",
    f"fuse {GOOD} --data digits": "a fusion needs at least two parents",
    f"fuse {GOOD} other.safetensors --data digits": "only networks of one architecture can be fused",
    f"fuse {PAIR} --set align.solver=hungarian": "align.solver: 'hungarian' is none of",
    f"fuse {PAIR} --set merge.wheight=1": "merge.wheight",
    f"fuse {PAIR} --set train=1": "'train' is a section: set one of train.distil, train.self_training",
    f"fuse {PAIR} --set solver=emd --set align.solver=sinkhorn": "align.solver is set twice, to emd and to sinkhorn",
    f"fuse {PAIR} --calibration 100 --set calibration.images=200": "calibration.images is set twice, to 100 and to 200",
    f"fuse {PAIR} --preset fast --set preset=best": "give --preset best instead of --set",
    f"fuse {PAIR} --preset fast --set calibration.mirror=true": "it needs train.distil above 0, not 0",
    f"fuse {PAIR} --weights 0.5,0.6": "they must sum to 1",
    f"fuse {PAIR} --weights 1": "1 weight for 2 parents",
    f"fuse {PAIR} --width 2 --child-arch digits_resnet": "--width and --child-arch both say",
    f"fuse {PAIR} --width -1": "--width -1 must be more than 0",
    f"fuse {PAIR} --width 2 --set merge.width_of=1": "--width and merge.width_of both say",
    f"fuse {PAIR} --child-arch resnet20": "the child cannot be a resnet20",
    f"fuse {PAIR} --out-parent p.safetensors": "leave out --out-parent",
    f"fuse {PAIR} --out-parent p.pt": "--out-parent p.pt: weights are written as safetensors",
    f"fuse {PAIR} --plot a.bmp": "a plot's name must end in",
    f"fuse {PAIR} --plot a.png --distil 1": "a path shows children as they are merged",
    f"path {PAIR} --points 1": "has no two ends",
    f"path {PAIR} --steps 1": "has no two ends",
    f"path {GOOD} {PAIR}": "a path runs between two parents, not 3",
    f"path {PAIR} --set align.solver=zip-it": "a path has other shares at every point",
    f"path {PAIR} --methods weights,weights": "--methods names weights twice",
    f"path nothing.pt {GOOD} --data digits": "there is no file nothing.pt",
    f"match {GOOD} wide.safetensors --data digits": "no permutation matches them",
    f"match {PAIR} --set align.solver=zip-it": "matches no parent to another",
    f"tune {GOOD} other.safetensors --data digits": "only networks of one architecture can be fused",
    f"tune {PAIR} --storage nowhere": "--storage is no URL of a database",
    f"tune {PAIR} --distil 1": "leave out train.distil",
    f"match nothing.pt {GOOD} --data digits": "there is no file nothing.pt",
    f"tune nothing.pt {GOOD} --data digits": "there is no file nothing.pt",
    "groups resnet19": "there is no built-in network resnet19",
    "groups digits_resnet --input-shape 0,1,1": "--input-shape '0,1,1' must be positive whole numbers",
    "groups digits_resnet --input-shape 1,10000000,10000000": "give a smaller one",
    "settings align.sorcerer": "there is no setting 'align.sorcerer'",
    "train digits_resnet --data digits --out a.safetensors --share 4/4": "shares are 0 to 3",
    "train digits_resnet --data digits --out a.safetensors --lr 0": "training setting learning_rate",
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


def test_a_plot_is_checked_without_a_library_that_draws() -> None:
    words = ["fuse", "nothing.pt", "nothing.pt", "--data", "digits", "--plot", "a.png"]
    program = f"import sys; from depfuse.cli import main; main({words}); sys.exit('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "depfuse: there is no file nothing.pt\n")


def test_a_fusion_imports_no_large_library_that_it_does_not_use(tmp_path: Path) -> None:
    parents = [str(CHECKPOINTS / f"digits-{name}.safetensors") for name in "ab"]
    few = ["--calibration", "100", "--refit-steps", "2"]
    words = ["fuse", *parents, "--data", "digits", *few, "--out", str(tmp_path / "child.safetensors")]
    unused = (
        "sklearn",
        "ot",
        "matplotlib",
        "optuna",
        "torchmetrics",
        "transformers",
        "pandas",
        "IPython",
        "scipy.cluster",
        "timm",
        "torchvision",
        "sympy",
        "networkx",
        "torch._dynamo",
        "torch._inductor",
    )
    program = (
        f"import json, sys; from depfuse.cli import main; code = main({words});"
        f"print(json.dumps([code, [name for name in {unused} if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
