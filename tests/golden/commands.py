"""The golden cases of the command line: each runs commands in an empty folder and says what came of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from digits_parents import digits_files

from .networks import vgg
from .product import main, read_state, trained, write_network
from .record import Outcome, of_child, plain, state_digest

AB = digits_files("a", "b")
SCORES = ("accuracy", "loss", "calibration_error")
COMPARED = ("what", "number", "accuracy", "lead", "error", "networks", "labels")


def depfuse(*words: object) -> int:
    """Run a command in this process, without its words; its exit code."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return main([str(word) for word in words])


def recipe_file(folder: Path, **settings: Any) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps({"calibration": 128, "batch_size": 64, **settings}))
    return path


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """What a report advises, as data, and the scores that it follows from."""

    def picked(values: dict[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any] | None:
        return None if values is None else {name: values[name] for name in names}

    advice = report["advice"]

    def compared(values: dict[str, Any] | None) -> dict[str, Any] | None:
        """Call a score what it was called when accuracy was the only one."""
        return None if values is None else picked({"accuracy": values["value"], **values}, COMPARED)

    found: dict[str, Any] = {name: compared(advice[name]) for name in ("keep", "instead", "child")}
    found |= {name: [compared(one) for one in advice[name]] for name in ("rivals", "better")}
    found |= {name: advice[name] for name in ("images", "chance", "chance_alone", "same_start")}
    scored = ("child", "ensemble", "teacher", "naive", "naive_renorm")
    found["scores"] = {name: picked(report[name], SCORES) for name in scored}
    found["scores"] |= {name: [picked(one, SCORES) for one in report[name]] for name in ("parents", "heads")}
    found["family"] = [[row["name"], row["disagreement"], row["chosen"]] for row in report["family"]]
    return found


def fuse(parents: list[str], command: str = "fuse", options: tuple[str, ...] = (), **settings: Any) -> Any:
    def run(folder: Path) -> Outcome:
        child, report = folder / "child.safetensors", folder / "report.json"
        recipe = recipe_file(folder, **settings)
        given = ["--recipe", recipe, "--out", child, "--report", report]
        code = depfuse(command, *parents, "--data", "digits", *given, *options)
        read = json.loads(report.read_text())
        exact: dict[str, Any] = {"verdict": verdict(read)}
        if command == "path":
            exact["path"] = [[row["alpha"], *(row[name] for name in SCORES)] for row in read["path"]]
            exact["barrier"] = read["barrier"]
        keep = read["advice"]["keep"]
        return of_child(child, codes=[code], exact=exact, chosen=f"keep {keep['what']} {keep['number']}")

    return run


def match(folder: Path) -> Outcome:
    report = folder / "report.json"
    code = depfuse(
        "match", *AB, "--data", "digits", "--recipe", recipe_file(folder, distance="scaled"), "--report", report
    )
    groups = json.loads(report.read_text())["matchings"][0]["groups"]
    names = ("name", "moved", "weight_cost_before", "weight_cost_after", "correlation_before", "correlation_after")
    found = [{name: group[name] for name in (*names, "source")} for group in groups]
    return Outcome(codes=[code], exact={"groups": found}, chosen=plain([group["source"] for group in groups]))


def tune(folder: Path) -> Outcome:
    out = folder / "study"
    recipe = recipe_file(folder, criterion="weights", refit="none", average="mean", restarts=2, calibration=100)
    held = ["--held-out", 100, "--trials", 3, "--quiet", "--out", out]
    code = depfuse("tune", *AB, "--data", "digits", "--recipe", recipe, *held)
    trials = [json.loads(path.read_text()) for path in sorted(out.glob("trial-*.json"))]
    found = [{name: trial[name] for name in ("trial", "state", "quality", "digest")} for trial in trials]
    return Outcome(codes=[code], exact={"trials": found})


def train(folder: Path) -> Outcome:
    out = folder / "trained.safetensors"
    words = ["--epochs", 2, "--batch-size", 64, "--precision", "float32", "--out", out]
    code = depfuse("train", "digits_resnet(width=0.5)", "--data", "digits", *words)
    return of_child(out, codes=[code], exact={"files": sorted(path.name for path in folder.iterdir())})


def killed(folder: Path) -> Outcome:
    """Train a network, and the same one again by a process that dies half-way and one that goes on."""
    program = "import sys; from pathlib import Path; from golden.product import trained; trained(Path(sys.argv[1]), 2)"
    died = subprocess.run(
        [sys.executable, "-c", program, str(folder / "state")],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        check=False,
    )
    assert (folder / "state").exists()
    resumed, whole = (trained(folder / name).state_dict() for name in ("state", "another"))
    return Outcome([died.returncode], {"resumed": state_digest(resumed), "uninterrupted": state_digest(whole)})


def refused(folder: Path) -> Outcome:
    """Ask for what is refused: every command but the first ends with code 2 and leaves no file."""
    first, second = AB
    broken, narrow, cut = (folder / f"{name}.safetensors" for name in ("broken", "narrow", "cut"))
    architecture = ["--arch", "digits_resnet(width=1.25)"]
    state = read_state(first)
    state["linear.bias"] = torch.full_like(state["linear.bias"], torch.nan)
    write_network(broken, state, architecture[1])
    write_network(narrow, vgg().state_dict(), architecture[1])
    cut.write_bytes(Path(first).read_bytes()[:5000])
    out = folder / "child.safetensors"

    def by(**settings: Any) -> int:
        recipe = recipe_file(folder, **settings)
        code = depfuse("fuse", first, second, "--data", "digits", "--recipe", recipe, "--out", out)
        assert out.exists() == (code == 0)
        out.unlink(missing_ok=True)
        return code

    codes = {
        "nothing, this is accepted": by(refit="none", distance="scaled", calibration=32),
        "one parent": depfuse("fuse", first, "--data", "digits", "--out", out),
        "no such file": depfuse("fuse", first, folder / "none.safetensors", "--data", "digits", "--out", out),
        "not finite": depfuse("fuse", first, broken, *architecture, "--data", "digits", "--out", out),
        "another network": depfuse("fuse", first, narrow, *architecture, "--data", "digits", "--out", out),
        "a file cut off": depfuse("fuse", first, cut, *architecture, "--data", "digits", "--out", out),
        "no such data": depfuse("fuse", first, second, "--data", folder / "none.npz", "--out", out),
        "no such recipe": depfuse("fuse", first, second, "--data", "digits", "--recipe", "nothing-of-that-name"),
        "a command unknown": depfuse("fusion", first, second),
        "an unknown setting": by(sovler="emd"),
        "a setting nothing reads": by(refit="none", refit_steps=3),
        "a contradiction": by(goal="best", renorm="repair"),
        "a reference out of range": by(refit="none", reference=3),
        "shares for three": by(refit="none", weights=[0.5, 0.25, 0.25]),
        "one calibration image": by(refit="none", calibration=1),
        "a negative number": by(refit="none", seed=-1),
        "match without a second parent": depfuse("match", first, "--data", "digits"),
        "path of three": depfuse("path", first, second, first, "--data", "digits"),
        "training an unknown network": depfuse("train", "no_such_network", "--data", "digits", "--out", out),
    }
    assert not out.exists()
    return Outcome(codes=list(codes.values()), exact={"codes": codes})


COMMANDS: dict[str, Callable[[Path], Outcome]] = {
    "command fuse": fuse(AB, refit="none", distance="scaled"),
    "command fuse, ridge": fuse(AB, refit="ridge", refit_steps=6, calibration=320),
    "command fuse, goal best": fuse(digits_files("skewed-1-a", "skewed-1-b"), goal="best", refit_steps=2),
    "command fuse, same start": fuse(digits_files("same-a", "same-b"), refit="none", distance="scaled"),
    "command path": fuse(AB, command="path", options=("--points", "5"), refit="none", distance="scaled"),
    "command match": match,
    "command tune": tune,
    "command train": train,
    "training, killed and resumed": killed,
    "refused inputs": refused,
}
