"""Norms as functions whose statistics are the network's own buffers, in operations that autograd records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_STATISTICS = ("running_mean", "running_var")
_ARGUMENTS = ("input", *_STATISTICS, "weight", "bias")
# Function -> whether it uses the statistics of its inputs, as an argument of this name says, and by default.
_BY_INPUTS = {functional.batch_norm: ("training", False), functional.instance_norm: ("use_input_stats", True)}


def has_own_statistics(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call is of a norm by statistics that require gradients, of which torch has no derivative."""
    if func not in _BY_INPUTS:
        return False
    given = _given(func, args, kwargs)
    return any(isinstance(own := given.get(name), Tensor) and own.requires_grad for name in _STATISTICS)


def normalised(func: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Compute BatchNorm or InstanceNorm with statistics that require gradients.

    (x - mean) / sqrt(var + eps) * weight + bias, each by channel, where the statistics are used; where those of the
    inputs are, theirs are only renewed and no part of the output.
    """
    given = _given(func, args, kwargs)
    if given[_BY_INPUTS[func][0]]:
        return func(**{**given, **{name: given[name].detach().clone() for name in _STATISTICS}})
    images: Tensor = given["input"]
    found: Tensor
    by_channel = (-1, *[1] * (images.dim() - 2))
    mean, variance = (given[name].view(by_channel) for name in _STATISTICS)
    found = (images - mean) / torch.sqrt(variance + given["eps"])
    if given["weight"] is not None:
        found = found * given["weight"].view(by_channel)
    return found if given["bias"] is None else found + given["bias"].view(by_channel)


def _given(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a norm's call."""
    by_inputs, usually = _BY_INPUTS[func]
    names = (*_ARGUMENTS, by_inputs, "momentum", "eps")
    usual = {"weight": None, "bias": None, by_inputs: usually, "eps": 1e-5}
    return usual | dict(zip(names, args, strict=False)) | dict(kwargs)
