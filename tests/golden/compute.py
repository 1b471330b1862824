"""Computing a case, storing what came of it, and holding it against what is stored."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from .cases import FUSIONS, QUICK
from .commands import COMMANDS
from .machine import kind
from .networks import PARENTS
from .product import DepfuseWarning, fused
from .record import Outcome, of_fusion

HERE = Path(__file__).resolve().parent
VALUES = HERE / "values.json"
# Of the outputs, relative to their largest: the first of these that is ten times what two kinds of machines differ by.
TOLERANCES = (1e-4, 1e-3, 1e-2, 1e-1)
MARGIN = 10
# Where they differ by more, a discrete choice went another way, and what is left to compare is how good the child is:
# two children as good as each other differ by the sampling error of their accuracies, of which so many are allowed.
ERRORS = 3
IMAGES = 500  # that the accuracy is of


def compute(name: str) -> Outcome:
    """Run a case with one thread: sums of several are rounded in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore", DepfuseWarning)
            torch.manual_seed(0)
            if name in COMMANDS:
                return COMMANDS[name](Path(folder))
            case = FUSIONS[name]
            settings = {**QUICK, **case.settings}
            given = (case.labels, case.template, case.training_images)
            return of_fusion(*fused(PARENTS[case.parents](), settings, *given))
    finally:
        torch.set_num_threads(threads)


def records_file(of: str | None = None) -> Path:
    """Where the records of a kind of machine are, of this one where none is named."""
    return HERE / "records" / f"{of or kind()}.json"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write one line per case, in the order of their names."""
    lines = [f"{json.dumps(name)}: {json.dumps(content[name])}" for name in sorted(content)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def merged(values: list[dict[str, Any]]) -> dict[str, Any]:
    """What kinds of machines agree on in a case, and how closely: the first kind's values with a tolerance."""
    first, *others = values
    distances = [distance(first["outputs"], other["outputs"]) for other in others]
    same = all(other["chosen"] == first["chosen"] for other in others)
    within = next((t for t in TOLERANCES if all(MARGIN * d <= t for d in distances)), None)
    return {**first, "chosen": first["chosen"] if same else None, "within": within}


def distance(first: list[list[float]] | None, second: list[list[float]] | None) -> float:
    """Of two children's outputs, relative to the largest."""
    if first is None or second is None:
        return 0.0
    a, b = np.array(first), np.array(second)
    return float(np.abs(a - b).max() / np.abs(a).max())


def differences(outcome: Outcome, stored: dict[str, Any]) -> list[str]:
    """Hold a case against the records of this kind of machine: what is another."""
    found = json.loads(json.dumps(outcome.record))
    return [name for name in sorted({*found, *stored}) if found.get(name) != stored.get(name)]


def deviations(outcome: Outcome, stored: dict[str, Any]) -> list[str]:
    """Hold a case against the values of other kinds of machines: what differs by more than rounding.

    In a fusion with the same outputs, channels that do the same may have changed places.
    """
    found, within = outcome.values, stored["within"]
    wrong = [f"exit codes {found['codes']}, not {stored['codes']}"] if found["codes"] != stored["codes"] else []
    apart = distance(stored["outputs"], found["outputs"])
    alike = within is not None and apart <= within and not found["codes"]
    if stored["chosen"] is not None and found["chosen"] != stored["chosen"] and not alike:
        wrong.append(f"chosen is {found['chosen']}, not {stored['chosen']}")
    if within is not None and apart > within:
        wrong.append(f"outputs differ by {apart:.1e} of the largest, not by at most {within:g}")
    if (known := stored["accuracy"]) is not None:
        error = (2 * max(known * (1 - known), 1 / IMAGES) / IMAGES) ** 0.5
        if abs(found["accuracy"] - known) > ERRORS * error:
            wrong.append(f"accuracy {found['accuracy']:.3f}, not {known:.3f}")
    return wrong
