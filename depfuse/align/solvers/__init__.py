"""Solvers of the matching problem, one file each; a new one is a file and a line in `SOLVERS`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depfuse.align.solvers.interface import Solver


@dataclass(frozen=True)
class Listed:
    """Where a solver is, and which settings it reads beside criterion and shares.

    Attributes
    ----------
    module
        The one here that holds a `SOLVER`. Nothing is imported before it is used: a recipe is checked, and `depfuse
        --help` printed, without torch.
    reads
        Settings -> in which cases: mappings of other settings to the values that they have then; `ALWAYS`, in any.
    """

    module: str
    reads: Mapping[str, tuple[Mapping[str, tuple[Any, ...]], ...]]


ALWAYS: tuple[Mapping[str, tuple[Any, ...]], ...] = ({},)
_ACTIVATIONS = ({"criterion": ("activations", "mixture")},)
_WEIGHTS = ({"criterion": ("weights", "mixture")},)
_WATCHED = {"distance": _ACTIVATIONS, "taps": _ACTIVATIONS}
# A start by activations watches them whatever the criterion.
_STARTED = ({"criterion": ("activations", "mixture")}, {"criterion": ("weights",), "start": ("activations",)})
_STARTING = {"distance": _STARTED, "taps": _STARTED, "start": ALWAYS}
# Unequal widths are brought to one by exact transport first, where a solver has none of its own.
_BY_EMD = {"masses": ALWAYS}
_ASSIGNED = ({"start": ("none", "activations")},)

# Name in a recipe -> the solver.
SOLVERS: dict[str, Listed] = {
    "emd": Listed("emd", {**_WATCHED, **_BY_EMD, "restarts": _WEIGHTS}),
    "sinkhorn": Listed("sinkhorn", {**_WATCHED, "regularisation": ALWAYS}),
    "unbalanced": Listed("unbalanced", {**_WATCHED, "strictness": ALWAYS}),
    "coordinate-descent": Listed("coordinate_descent", {**_STARTING, **_BY_EMD, "restarts": ALWAYS}),
    "spectral": Listed("spectral", {**_WATCHED, **_BY_EMD, "iterations": ALWAYS}),
    "reweighted-random-walk": Listed("reweighted_random_walk", {**_WATCHED, **_BY_EMD, "iterations": ALWAYS}),
    "ipfp": Listed("ipfp", {**_STARTING, **_BY_EMD, "iterations": ALWAYS}),
    "frank-wolfe": Listed("frank_wolfe", {**_STARTING, **_BY_EMD, "iterations": ALWAYS}),
    "fused-gromov": Listed("fused_gromov", {**_WATCHED, **_BY_EMD, "structure": ALWAYS, "iterations": ALWAYS}),
    "sinkhorn-implicit": Listed(
        "sinkhorn_implicit",
        {"distance": _ASSIGNED, "taps": _ASSIGNED, "start": ALWAYS, **_BY_EMD, "iterations": ALWAYS},
    ),
    "cca": Listed("cca", {"taps": ALWAYS, **_BY_EMD, "regularisation": ALWAYS}),
    "zip-it": Listed("zip_it", {"taps": ALWAYS, **_BY_EMD}),
    "identity": Listed("identity", _BY_EMD),
}


def load_solver(name: str) -> Solver:
    """Load the solver that a recipe names."""
    found: Solver = importlib.import_module(f"{__name__}.{SOLVERS[name].module}").SOLVER
    return found


def serving(criterion: str) -> tuple[str, ...]:
    """List the names of the solvers that match by a criterion."""
    return tuple(name for name in SOLVERS if name != "identity" and criterion in load_solver(name).criteria)
