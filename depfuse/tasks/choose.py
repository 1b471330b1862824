"""Choice of the task: as the recipe names it, or from the parents' outputs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from torch import Tensor

from depfuse.recipe.tasks import TASKS, TaskChoice
from depfuse.tasks.task import Task


def choose_task(choice: TaskChoice, outputs: Sequence[Tensor]) -> Task | None:
    """Build the task that a recipe names, or the one that fits the outputs.

    Parameters
    ----------
    choice
        What the recipe says.
    outputs
        Each parent's outputs (N, ...) for some images.

    Returns
    -------
    Task or None
        None where the recipe says that nothing is known of the outputs.

    Raises
    ------
    RecipeError
        The outputs are not of the shape that the task has.
    """
    if choice.name == "none":
        return None
    name = automatic(outputs) if choice.name == "auto" else choice.name
    kind = TASKS[name]
    assert issubclass(kind, TaskChoice)
    module, _, member = kind.place.partition(":")
    task: Task = getattr(importlib.import_module(module), member).of(outputs)
    return task


def automatic(outputs: Sequence[Tensor]) -> str:
    """Name the task that outputs are of: classes of rows (N, C), dense of maps (N, C, ...), regression of one number.

    A map of one channel, and a tensor (N,), are numbers too.
    """
    first = outputs[0]
    if first.dim() < 2 or first.shape[1] < 2:
        return "regression"
    return "classes" if first.dim() == 2 else "dense"
