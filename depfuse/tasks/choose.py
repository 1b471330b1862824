"""Choice of the task: as the recipe names it, or by what the parents' outputs tell of it."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.recipe.tasks import TASKS, TaskChoice
from depfuse.tasks.evidence import Evidence
from depfuse.tasks.task import Task

SAME_HEADS = 0.9  # cosine of two last layers' weights from which on they share a start and have moved little


@dataclass(frozen=True, eq=False)
class Chosen:
    """A task, and how it was chosen.

    Attributes
    ----------
    task
        None where the recipe says that nothing is known of the outputs.
    because
        What it was chosen by, in a sentence; empty where the recipe names it.
    doubtful
        Whether it may be otherwise, and the sentence says how to say so.
    """

    task: Task | None
    because: str = ""
    doubtful: bool = False


def choose_task(
    choice: TaskChoice,
    output: Tensor,
    outputs: Callable[[], Sequence[Tensor]] | None = None,
    evidence: Callable[[], Evidence] | None = None,
) -> Chosen:
    """Build the task that a recipe names, or the one that the outputs tell of.

    Parameters
    ----------
    choice
        What the recipe says.
    output
        A parent's output (N, ...) for one image or more.
    outputs
        Computes each parent's outputs for some images, for a task that depends on them.
    evidence
        Finds what the outputs tell; asked where the recipe leaves the task open. Where None, their shape decides.

    Raises
    ------
    RecipeError
        The outputs are not of the shape that the task has.
    """
    if choice.name == "none":
        return Chosen(None)
    name, because, doubtful = choice.name, "", False
    if name == "auto":
        found = by_shape(output) if evidence is None else evidence()
        name, because = found.task, found.sentence
        doubtful = found.doubtful or not found.clear
    kind = TASKS[name]
    assert issubclass(kind, TaskChoice)
    module, _, member = kind.place.partition(":")
    of = getattr(importlib.import_module(module), member).of
    task: Task = of(outputs() if kind.reads_outputs and outputs is not None else [output])
    return Chosen(task, because, doubtful)


def by_shape(output: Tensor) -> Evidence:
    """Assume classes of rows (N, C), dense classes of maps (N, C, ...), and a number of what has one channel."""
    if output.dim() < 2 or output.shape[1] < 2:
        return Evidence("regression", "one number may be a logit as well", clear=False)
    return Evidence("classes" if output.dim() == 2 else "dense", "nothing but their shape is known", clear=False)


def have_same_heads(networks: Sequence[nn.Module], count: int) -> bool:
    """Tell whether two networks' last layers with `count` outputs are much alike: of one start, and trained little."""
    heads = [_last_weight(network, count) for network in networks]
    return any(
        one is not None
        and other is not None
        and one.shape == other.shape
        and float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > SAME_HEADS
        for one, other in itertools.combinations(heads, 2)
    )


def _last_weight(network: nn.Module, count: int) -> Tensor | None:
    with torch.no_grad():
        found = [p for p in network.parameters() if p.dim() > 1 and count in p.shape[:2]]
        return found[-1].detach().double() if found else None
