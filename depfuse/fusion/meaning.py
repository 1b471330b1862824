"""What the outputs of the parents mean: which tensor counts, and the task that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating
from depfuse.recipe import Recipe
from depfuse.tasks.choose import choose_task
from depfuse.tasks.selection import ScoresFunction, check_scores, find_scores, select
from depfuse.tasks.task import Task

IMAGES = 250  # of which outputs are looked at


@dataclass(frozen=True, eq=False)
class Meaning:
    """Meaning of the parents' outputs.

    Attributes
    ----------
    scores
        Gives the tensor that counts of an output; None where the output is one.
    task
        What it means; None where nothing is known, and parents are matched and merged only.
    """

    scores: ScoresFunction | None = None
    task: Task | None = None

    @classmethod
    def of(
        cls,
        networks: Sequence[nn.Module],
        recipe: Recipe,
        images: Loader | None,
        example: Example | None,
        scores: ScoresFunction | None,
        labels: LabelSets | None,
    ) -> Meaning:
        """Choose what counts and what it means; from now on the networks return that alone.

        Parameters
        ----------
        networks
            The parents' copies, in evaluation mode.
        recipe
            Its task is read.
        images, example
            Images to run them on, or an input where there are none.
        scores
            The user's choice of the tensor that counts.
        labels
            The parents' label sets, where they differ.

        Raises
        ------
        RecipeError
            `scores` fails, or the outputs are not of the shape that the recipe's task has.
        """
        if example is None:
            return cls()
        output = _run(networks[0], example)
        if output is None:
            return cls()  # it does not run, which tracing reports
        if scores is not None:
            check_scores(scores, output)
        scores = scores or find_scores(output)
        select(networks, scores)
        selected = _run(networks[0], example)
        if not isinstance(selected, Tensor):
            if recipe.task.name not in ("auto", "none"):
                raise RecipeError(
                    f"the networks give a {type(output).__name__} of outputs, and task {recipe.task.name} is of one "
                    "tensor: say which, as `scores`"
                )
            return cls()

        def outputs() -> list[Tensor]:
            # Where labels differ, outputs differ in shape.
            looked_at = networks if labels is None else networks[:1]
            batches = [example] if images is None else [batch for batch, _ in images.first(IMAGES)]
            with torch.no_grad(), evaluating(*looked_at):
                return [torch.cat([run_network(own, batch).float() for batch in batches]) for own in looked_at]

        return cls(scores, choose_task(recipe.task, selected, outputs))


def _run(network: nn.Module, batch: Example) -> Any:
    """Run a network; None where it fails."""
    with torch.no_grad(), evaluating(network):
        try:
            return run_network(network, batch)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # whatever the user's network raises
            return None
