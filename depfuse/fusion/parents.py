"""The parents of a fusion, with what is known of them besides their weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from depfuse.align.statistics.shared import SharedMoments
from depfuse.data.loader import Loader
from depfuse.data.stream import Stream
from depfuse.errors import RecipeError
from depfuse.fusion.widths import shapes_of
from depfuse.groups import ChannelGroups
from depfuse.networks.forward import Example
from depfuse.tasks.batch_inputs import kind_of


@dataclass(frozen=True, eq=False)
class Parents:
    """Networks to fuse, where more is known of them than their weights: `fuse(Parents([a, b], labels=...), ...)`.

    Attributes
    ----------
    models
        Two or more parents with equal tensor names, on one device; their widths may differ. Of half precision, or of
        several types, they are computed with in float32, and the child has the types of the first.
    labels
        For every parent, the labels of its outputs in order, where they differ. The child has one output for each of
        all labels, ascending.
    template
        A network of the same architecture and the child's shapes: with an output for each label, or of a width that no
        parent has; left as it was.
    example
        An input (1, ...) to trace with; one calibration sample where None.
    groups
        Channel groups of this architecture, which are then not traced again, nor proved again where they are proved;
        not used where widths differ.
    moments
        Activation moments of these parents and groups, to be reused in several fusions.
    test
        Images that the child will be scored on. Nothing is looked at but whether their labels fit its outputs, so that
        this is said before anything is computed, and, where each output is one number, whether they are 0 and 1: it is
        a logit then.
    background
        Of detectors: the label of background, which each parent has, where class scores are of a softmax with it.
    """

    models: Sequence[nn.Module]
    labels: Sequence[Sequence[int]] | None = None
    template: nn.Module | None = None
    example: Example | None = None
    groups: ChannelGroups | None = None
    moments: SharedMoments | None = None
    test: Loader | Stream | None = None
    background: int | None = None

    @classmethod
    def of(cls, parents: Iterable[nn.Module] | Parents) -> Parents:
        """Take networks of which nothing else is known, or parents as they are.

        Raises `RecipeError` where these are no networks in an order, or what is known of them is something else.
        """
        if isinstance(parents, Parents):
            if not isinstance(parents.template, nn.Module | None):
                raise RecipeError(f"`template` is {kind_of(parents.template)}: give a network of the child's shapes")
            if not isinstance(parents.groups, ChannelGroups | None):
                raise RecipeError(f"the groups are {kind_of(parents.groups)}: give what find_groups found")
            return replace(parents, models=cls.of(parents.models).models)
        if isinstance(parents, Set) or not isinstance(parents, (Iterable, nn.Module)):
            raise RecipeError(f"the parents are {kind_of(parents)}: give a list of two or more networks")
        return cls(list(parents) if isinstance(parents, Iterator) else cast("Sequence[nn.Module]", parents))

    @property
    def column_of_background(self) -> int | None:
        """The output that is background, of parents that know the same labels."""
        if self.background is None or self.labels is None:
            return self.background
        if self.background not in self.labels[0]:
            raise RecipeError(
                f"`background` is {self.background}, which must be a label of each parent: name it among `labels`"
            )
        return list(self.labels[0]).index(self.background)

    @property
    def of_one_width(self) -> bool:
        """Whether the parents, and the template, have equal shapes but for their heads."""
        networks = (*self.models, self.template or self.models[0])
        return self.labels is not None or all(shapes_of(model) == shapes_of(self.models[0]) for model in networks)
