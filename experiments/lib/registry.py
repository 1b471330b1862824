"""All experiments by name: what each claims, how it is run, and the page of its results."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd

from depfuse.io.atomic_files import replacing
from experiments.lib import places

FOLDERS = ("studies", "benchmarks", "proofs")
TRAINERS = {"train_zoo": "lib/parents/train_zoo.py", "train_digits": "lib/parents/digits.py"}
EARLIER = "## Measured earlier\n"


@dataclass(frozen=True)
class Experiment:
    """How an experiment is run with the words of a command line, and what makes tables of its rows, if it keeps any.

    Its page is `shown_as`, its own name where that is empty.
    """

    main: Callable[[Sequence[str]], int]
    page: Callable[[Path], str] | None
    shown_as: str = ""


def files() -> dict[str, Path]:
    """Map the name of each experiment to its module's file."""
    root = places.ROOT / "experiments"
    found = {path.stem: path for folder in FOLDERS for path in sorted((root / folder).glob("[a-z]*.py"))}
    return found | {name: root / path for name, path in TRAINERS.items()}


def claims() -> dict[str, str]:
    """Map the name of each experiment to the first line of its docstring; no module is loaded."""
    return {name: docstring(path).splitlines()[0] for name, path in files().items()}


def docstring(path: Path) -> str:
    """Read a module's docstring."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def load(name: str) -> Experiment:
    """Load an experiment: a module with `STUDY`, or `MEASUREMENT`, or `main` where it keeps no rows."""
    path = files()[name].relative_to(places.ROOT).with_suffix("")
    module = import_module(".".join(path.parts))
    declared = getattr(module, "STUDY", None) or getattr(module, "MEASUREMENT", None)
    if declared is None:
        return Experiment(module.main, None)
    return Experiment(declared.main, declared.page, getattr(declared, "shown_as", ""))


def write_page(name: str, rows: Path = places.MEASUREMENTS, pages: Path = places.PAGES) -> Path | None:
    """Write PAGES/NAME.md, or what it is shown as, from the rows stored in a folder; None where there are none.

    What the page says under `## Measured earlier` stays.
    """
    experiment, csv = load(name), rows / f"{name}.csv"
    if experiment.page is None or not csv.exists():
        return None
    path = pages / f"{experiment.shown_as or name}.md"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    claim, _, more = docstring(files()[name]).partition("\n")
    parts = [f"# {claim}", more, f"Measured on {_machines(csv)}.", experiment.page(csv)]
    if EARLIER in before:
        parts.append(EARLIER + before.partition(EARLIER)[2])
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n", encoding="utf-8")
    return path


def _machines(csv: Path) -> str:
    """Name the processors and numbers of threads of stored rows."""
    rows = pd.read_csv(csv, dtype=str, keep_default_na=False)
    if not {"machine", "threads"} <= set(rows):
        return "a machine that its rows do not name"
    pairs = dict.fromkeys(zip(rows["machine"], rows["threads"], strict=True))
    return "; ".join(f"{machine}, {threads} {'thread' if threads == '1' else 'threads'}" for machine, threads in pairs)
