"""What the user could keep instead of a child."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from depfuse.align import Coupling
from depfuse.errors import RecipeError
from depfuse.fusion.checks import check_parents, label_sets
from depfuse.fusion.widths import shapes_of
from depfuse.groups import ChannelGroups
from depfuse.merge import average


def naive_average(
    models: Sequence[nn.Module],
    shares: Sequence[float],
    groups: ChannelGroups,
    labels: Sequence[Sequence[int]] | None = None,
    template: nn.Module | None = None,
) -> nn.Module:
    """The average of parents of one width as they are, without any alignment; the arguments are those of `fuse`."""
    sets = label_sets(labels, models, template)
    check_parents(models, sets)
    for number, model in enumerate(models if sets is None else (), start=1):
        if shapes_of(model) != shapes_of(models[0]):
            raise RecipeError(f"parent {number} has another width than parent 1: bring them to one width first")
    identities = {group.name: Coupling.identity(group.size) for group in groups.free}
    return average(models, groups, [identities] * len(models), shares, sets, template)
