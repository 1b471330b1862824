"""Weights that a layer computes in every forward pass: by a spectral norm, a weight norm or a pruning mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# What follows the name of a weight's parametrisation, and of a weight with one of torch's older hooks, in a state dict.
PARAMETRISED = {_SpectralNorm: (".original", ".0._u", ".0._v"), _WeightNorm: (".original0", ".original1")}
HOOKED = {SpectralNorm: ("_orig", "_u", "_v"), WeightNorm: ("_g", "_v"), BasePruningMethod: ("_orig", "_mask")}
SPECTRAL_NORM, WEIGHT_NORM, PRUNED = (_SpectralNorm, SpectralNorm), (_WeightNorm, WeightNorm), (BasePruningMethod,)


class ComputedWeight(NamedTuple):
    """What a weight is computed by, and the state-dict keys of what it is computed from.

    Attributes
    ----------
    method
        The parametrisation or hook.
    keys
        Of a spectral norm the weight and its left and right singular vector, of a weight norm the length and the
        direction, of a pruned weight this and its mask.
    """

    method: Any
    keys: tuple[str, ...]


def computed_weights(model: nn.Module, methods: tuple[type, ...]) -> Iterator[ComputedWeight]:
    """List the weights that are computed by one of some methods, before others or alone, module by module."""
    for name, module in model.named_modules():
        if isinstance(module, ParametrizationList) and isinstance(module[0], methods):
            yield ComputedWeight(module[0], _keys(name, module[0], PARAMETRISED))
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, methods):
                own: Any = hook
                tensor = own._tensor_name if isinstance(hook, BasePruningMethod) else own.name
                yield ComputedWeight(hook, _keys(f"{name}.{tensor}" if name else tensor, hook, HOOKED))


def _keys(name: str, method: Any, endings: dict[type, tuple[str, ...]]) -> tuple[str, ...]:
    return next(tuple(name + ending for ending in of) for kind, of in endings.items() if isinstance(method, kind))
