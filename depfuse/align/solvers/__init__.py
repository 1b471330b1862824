"""Solvers of the matching problem, one file each; their settings are in `depfuse.recipe.solvers`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from depfuse.recipe.solvers import facts

if TYPE_CHECKING:
    from depfuse.align.solvers.interface import Implementation


def load_solver(name: str) -> Implementation:
    """Import the solver that a recipe names."""
    solver: Implementation = importlib.import_module(facts(name).module).SOLVER
    return solver
