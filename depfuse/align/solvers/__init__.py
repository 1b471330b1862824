"""Solvers of the matching problem, one file each; a new one is a file and a line in `SOLVERS`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from depfuse.align.solvers.interface import Solver

# Name in a recipe -> module here, which holds a `SOLVER`. Nothing is imported before it is used: a recipe is checked,
# and `depfuse --help` printed, without torch.
SOLVERS: dict[str, str] = {
    "emd": "emd",
    "sinkhorn": "sinkhorn",
    "unbalanced": "unbalanced",
    "coordinate-descent": "coordinate_descent",
    "spectral": "spectral",
    "reweighted-random-walk": "reweighted_random_walk",
    "ipfp": "ipfp",
    "frank-wolfe": "frank_wolfe",
    "fused-gromov": "fused_gromov",
    "sinkhorn-implicit": "sinkhorn_implicit",
    "cca": "cca",
    "zip-it": "zip_it",
    "identity": "identity",
}


def load_solver(name: str) -> Solver:
    """The solver that a recipe names."""
    found: Solver = importlib.import_module(f"{__name__}.{SOLVERS[name]}").SOLVER
    return found


def serving(criterion: str) -> tuple[str, ...]:
    """Names of the solvers that match by a criterion."""
    return tuple(name for name in SOLVERS if name != "identity" and criterion in load_solver(name).criteria)
