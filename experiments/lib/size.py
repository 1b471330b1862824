"""How many pairs of channels are to be kept apart so that a child has a given number of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor, nn

from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.widening import find_hosts, make_room

HALVINGS = 20


def keep_worst_for(
    times: float, models: Sequence[nn.Module], groups: ChannelGroups, example: Tensor, template: nn.Module | None = None
) -> float:
    """The `keep_worst` with which the child has about `times` as many parameters as a merged one.

    The number of parameters follows from how many pairs of each group are kept, whichever these are, and does not fall
    when more are kept: it is found by bisection, without merging anything.

    Raises
    ------
    RecipeError
        No child has so many.
    """
    model = template or models[0]
    room, _ = find_hosts(models[0], groups, example)
    names = {name for name, _ in model.named_parameters()}
    state: Mapping[str, Tensor] = model.state_dict()
    merged = _parameters({key: tensor.shape for key, tensor in state.items()}, names)

    def ratio(share: float) -> float:
        counts: dict[str, int] = {}
        for name, host in room.items():
            pairs = round(share * groups[name].size)
            counts[host] = counts.get(host, 0) + pairs * (len(models) - 1)
        shapes = make_room(groups, {host: count for host, count in counts.items() if count}, state).shapes(state)
        return _parameters(shapes, names) / merged

    most = ratio(1.0)
    if not 1.0 < times <= most:
        raise RecipeError(f"a child of these parents has 1 to {most:.2f} times the parameters, not {times:g} times")
    below, above = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if ratio(middle) < times else (below, middle)
    return min((below, above), key=lambda share: (abs(ratio(share) - times), -share))


def parameters(model: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def _parameters(shapes: Mapping[str, Sequence[int]], names: set[str]) -> int:
    return sum(prod(shape) for key, shape in shapes.items() if key in names)
