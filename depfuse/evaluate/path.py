"""Evaluate the networks on the way from one parent to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from depfuse.errors import RecipeError
from depfuse.evaluate.evaluation import Batches, evaluate
from depfuse.evaluate.scores import Agreement, PathPoint
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.scores import Scores
from depfuse.tasks.task import Task


def evaluate_path(
    ends: tuple[Scores | Agreement, Scores | Agreement],
    network_at: Callable[[float], nn.Module],
    batches: Batches,
    alphas: Sequence[float],
    on_point: Callable[[float], None] | None = None,
    *,
    score: Callable[[nn.Module], Scores | Agreement] | None = None,
    task: Task = CLASSES,
) -> list[PathPoint]:
    """Score the networks between two parents.

    The two ends are the parents themselves, whose scores are passed in: nothing is merged there, and
    no statistics are replaced.

    Parameters
    ----------
    ends : (Scores, Scores)
        Of the first parent (alpha 0) and the second (alpha 1).
    network_at : callable
        Gives the network at a share of the second parent strictly between 0 and 1.
    batches : iterable
        Labelled images; iterated once per inner point.
    alphas : sequence of float
        Increasing shares of the second parent, the first 0 and the last 1.
    on_point : callable, optional
        Called with alpha after each inner point.
    score : callable, optional
        Scores a network otherwise than on the labels of the batches.
    task : Task, optional
        What outputs mean; class scores when left out.
    """
    if len(alphas) < 2 or alphas[0] != 0.0 or alphas[-1] != 1.0:
        raise RecipeError(f"a path runs from 0 to 1, not over {list(alphas)}")
    points = [PathPoint(0.0, ends[0])]
    for alpha in alphas[1:-1]:
        network = network_at(alpha)
        points.append(PathPoint(alpha, evaluate(network, batches, task) if score is None else score(network)))
        if on_point is not None:
            on_point(alpha)
    return [*points, PathPoint(1.0, ends[1])]
