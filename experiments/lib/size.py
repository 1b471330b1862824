"""How large a network is, and how many pairs of channels are to be kept apart so that a child has a given size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.widening import find_hosts, make_room
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating

HALVINGS = 20


def keep_worst_for(
    times: float,
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    example: Tensor,
    template: nn.Module | None = None,
    *,
    multiplications: bool = False,
) -> float:
    """The `keep_worst` with which the child has about `times` as many parameters as a merged one, or multiplications.

    Either number follows from how many pairs of each group are kept, whichever these are, and does not fall
    when more are kept: it is found by bisection, without merging anything.

    Raises
    ------
    RecipeError
        No child has so many.
    """
    model = template or models[0]
    room, _ = find_hosts(models[0], groups, example)
    uses = {name: 1 for name, _ in model.named_parameters()}
    if multiplications:
        uses = _places(model, example)
    state: Mapping[str, Tensor] = model.state_dict()
    merged = _size({key: tensor.shape for key, tensor in state.items()}, uses)

    def ratio(share: float) -> float:
        counts: dict[str, int] = {}
        for name, host in room.items():
            pairs = round(share * groups[name].size)
            counts[host] = counts.get(host, 0) + pairs * (len(models) - 1)
        shapes = make_room(groups, {host: count for host, count in counts.items() if count}, state).shapes(state)
        return _size(shapes, uses) / merged

    most = ratio(1.0)
    if not 1.0 < times <= most:
        what = "multiplications" if multiplications else "parameters"
        raise RecipeError(f"a child of these parents has 1 to {most:.2f} times the {what}, not {times:g} times")
    below, above = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if ratio(middle) < times else (below, middle)
    return min((below, above), key=lambda share: (abs(ratio(share) - times), -share))


def parameters(model: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(model: nn.Module, example: Tensor) -> int:
    """Count the multiplications of convolutions and linear layers for one image (1, C, H, W)."""
    weights = dict(model.named_parameters())
    return sum(weights[name].numel() * count for name, count in _places(model, example).items())


def _places(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Map the weights of convolutions and linear layers to the number of places at which each is used."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    found: dict[str, int] = {}
    handles = []
    for name, layer in layers.items():

        def count(_layer: nn.Module, _inputs: object, output: Tensor, key: str = f"{name}.weight") -> None:
            found[key] = found.get(key, 0) + prod(output.shape[2:])

        handles.append(layer.register_forward_hook(count))
    try:
        with torch.no_grad(), evaluating(model):
            run_network(model, example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _size(shapes: Mapping[str, Sequence[int]], uses: Mapping[str, int]) -> int:
    return sum(prod(shape) * uses.get(key, 0) for key, shape in shapes.items())
