"""A fusion with everything that its path and its files need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from depfuse.cli.inputs import Inputs
from depfuse.data import Loader
from depfuse.data.stream import Stream
from depfuse.evaluate import Agreement, Scores, evaluate_agreement
from depfuse.fusion.result import FusionResult
from depfuse.io.same_layout import Layout
from depfuse.renorm import chosen_method
from depfuse.report.strip import Strip
from depfuse.tasks.selection import selected

Ends = tuple[Scores | Agreement, Scores | Agreement]


@dataclass(frozen=True)
class Fused:
    """A fusion with everything that its path needs.

    `template` is as `fuse` was given it, and networks on the path are refitted as the recipe says where
    `path_refitted`. The child's file has a `layout` where that is one of another program. A `strip` shows one image
    along the path.
    """

    inputs: Inputs
    result: FusionResult
    template: nn.Module | None
    calibration: Loader | None
    test: Loader | Stream
    path_refitted: bool = True
    layout: Layout | None = None
    strip: Strip | None = None

    @property
    def renorm(self) -> str:
        """How the child was renormalised."""
        recipe = self.result.recipe  # ridge sets the child's statistics itself
        return chosen_method("auto" if recipe.refit.name == "ridge" else recipe.renorm.name, self.inputs.models[0])

    @property
    def score(self) -> Callable[[nn.Module], Agreement] | None:
        """How a network is scored without labels; None with labels."""
        if self.inputs.data.labelled:
            return None
        sets, task = self.result.parent_labels, self.result.meaning.scored
        parents = selected(self.result.scored_parents, self.result.meaning.scores)
        return lambda network: evaluate_agreement(parents, [network], self.test, sets=sets, task=task)[2][0]

    def counting(self, network: nn.Module) -> nn.Module:
        """Let a network give the tensor that counts."""
        return selected([network], self.result.meaning.scores)[0]

    def show(self, row: str, alpha: float, network: nn.Module) -> nn.Module:
        """Add a network to the strip, if there is one, and return it, see `counting`."""
        counting = self.counting(network)
        if self.strip is not None:
            self.strip.add(row, alpha, counting)
        return counting
