"""Layers that renormalisation can correct, and the BatchNorm behind them, found in a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import Hook, evaluating, hooked
from depfuse.renorm.reset import BATCH_NORM

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # no subclass
LEAST = 1e-6  # of the target deviation: a channel with less is silent, and is not scaled


@dataclass(frozen=True)
class Layer:
    """A convolution, a linear layer or a BatchNorm.

    Attributes
    ----------
    name
        Name of the module.
    source
        For a BatchNorm, the layer whose output is its input; None for other layers, and after another operation.
    norm
        The BatchNorm whose input is the layer's output.
    times
        Number of times that it runs.
    gives_outputs
        True if its output is the network's.
    """

    name: str
    source: str | None
    norm: str | None
    times: int
    gives_outputs: bool


def find_layers(model: nn.Module, images: Example, asking: str, advice: str = "choose reset") -> list[Layer]:
    """List the layers in the order in which they run, each once.

    Parameters
    ----------
    model, images
        The network, and an input (N, C, H, W).
    asking, advice
        The caller, and what to do instead: words of the error.

    Raises
    ------
    RecipeError
        There is a BatchNorm of another kind than torch's own, or without running statistics or parameters; or a layer
        computes its weight.
    """
    runs: list[tuple[str, Tensor, Tensor]] = []
    candidates = {name: module for name, module in model.named_modules() if type(module) in LAYERS}
    computed = [name for name, module in model.named_modules() if isinstance(module, LAYERS) and _is_computed(module)]
    if computed:
        raise RecipeError(
            f"{asking} changes the weights of layers, and {computed[0]} computes its own, as by a weight or spectral"
            " norm: choose another method, or none"
        )
    for name, module in model.named_modules():
        if not isinstance(module, BATCH_NORM):
            continue
        if name not in candidates or not module.affine or module.running_mean is None:
            kind = type(module).__name__
            raise RecipeError(f"{asking} does not know what {name} ({kind}) does to its channels: {advice}")

    def noting(name: str) -> Hook:
        return lambda module, inputs, output: runs.append((name, inputs[0], output))

    with torch.no_grad(), evaluating(model), hooked(model, {name: noting(name) for name in candidates}):
        result = run_network(model, images)
    giving = {id(output): name for name, _, output in runs}
    norms = {id(ran): name for name, ran, _ in runs if isinstance(candidates[name], BATCH_NORM)}
    times = Counter(name for name, _, _ in runs)
    layers = {
        name: Layer(
            name,
            giving.get(id(ran)) if isinstance(candidates[name], BATCH_NORM) else None,
            norms.get(id(output)),
            times[name],
            output is result,
        )
        for name, ran, output in runs
    }
    return list(layers.values())


def _is_computed(layer: nn.Module) -> bool:
    """Tell whether a layer computes its weight from other tensors, by a parametrisation or a hook."""
    return is_parametrized(layer, "weight") or ("weight" not in layer._parameters and hasattr(layer, "weight"))


def in_order(
    parent: nn.Module, groups: ChannelGroups, coupling: Couplings, figures: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Reorder figures (C,) of layers' outputs as couplings reorder the rows of their weights."""
    state: dict[str, Tensor] = dict(parent.state_dict())
    for name, figure in figures.items():
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = figure.reshape(-1, *[1] * (weight.dim() - 1)).expand_as(weight).clone()
    moved = apply_couplings(groups, coupling, state)
    return {name: moved[f"{name}.weight"].reshape(len(figure), -1).mean(1) for name, figure in figures.items()}


def factors(goal: Tensor, child: Tensor) -> Tensor:
    """Compute the factors from channels' own deviations or norms (C,) to their goals; 1 where a channel is silent."""
    return torch.where(child <= LEAST * goal, 1.0, goal / child.clamp_min(1e-300))
