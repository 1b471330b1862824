"""Recipes of fusions: plain frozen data, without torch."""

from depfuse.recipe.recipe import Recipe
from depfuse.recipe.refits import Refit
from depfuse.recipe.renorms import Renorm
from depfuse.recipe.sections import Align, Calibration, Merge, Teach, Train
from depfuse.recipe.solvers import Solver

__all__ = ["Align", "Calibration", "Merge", "Recipe", "Refit", "Renorm", "Solver", "Teach", "Train"]
