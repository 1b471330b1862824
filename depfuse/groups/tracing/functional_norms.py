"""BatchNorm as a function whose statistics are the network's own buffers, in operations that autograd records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_NAMES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_STATISTICS = _NAMES[1:3]
_DEFAULTS: Mapping[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}


def has_own_statistics(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call is of BatchNorm by statistics that require gradients, of which torch has no derivative."""
    if func is not functional.batch_norm:
        return False
    given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
    return any(isinstance(own := given.get(name), Tensor) and own.requires_grad for name in _STATISTICS)


def normalised(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Compute BatchNorm with statistics that require gradients.

    (x - mean) / sqrt(var + eps) * weight + bias, each by channel, where the statistics are used; where those of the
    batch are, theirs are only renewed and no part of the output.
    """
    given = {**_DEFAULTS, **dict(zip(_NAMES, args, strict=False)), **kwargs}
    if given["training"]:
        return functional.batch_norm(**{**given, **{name: given[name].detach().clone() for name in _STATISTICS}})
    images: Tensor = given["input"]
    found: Tensor
    by_channel = (-1, *[1] * (images.dim() - 2))
    mean, variance = (given[name].view(by_channel) for name in _STATISTICS)
    found = (images - mean) / torch.sqrt(variance + given["eps"])
    if given["weight"] is not None:
        found = found * given["weight"].view(by_channel)
    return found if given["bias"] is None else found + given["bias"].view(by_channel)
