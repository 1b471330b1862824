"""Choice of the task: as the recipe names it, or from the parents' outputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from torch import Tensor

from depfuse.recipe.tasks import TASKS, TaskChoice
from depfuse.tasks.task import Task


def choose_task(
    choice: TaskChoice, output: Tensor, outputs: Callable[[], Sequence[Tensor]] | None = None
) -> Task | None:
    """Build the task that a recipe names, or the one that fits the outputs.

    Parameters
    ----------
    choice
        What the recipe says.
    output
        A parent's output (N, ...) for one image or more.
    outputs
        Computes each parent's outputs for some images, for a task that depends on them.

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
    kind = TASKS[automatic(output) if choice.name == "auto" else choice.name]
    assert issubclass(kind, TaskChoice)
    module, _, member = kind.place.partition(":")
    of = getattr(importlib.import_module(module), member).of
    task: Task = of(outputs() if kind.reads_outputs and outputs is not None else [output])
    return task


def automatic(output: Tensor) -> str:
    """Name the task that an output is of: classes for rows (N, C), dense for maps (N, C, ...), regression for a number.

    A map of one channel, and a tensor (N,), are numbers too.
    """
    if output.dim() < 2 or output.shape[1] < 2:
        return "regression"
    return "classes" if output.dim() == 2 else "dense"
