"""Floating-point types of networks: computed in float32, given back as they came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from depfuse.networks.copying import evaluation_copy, unwrap

EXACT = (torch.float32, torch.float64)


def in_full_precision(models: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """Copy networks to float32 where any is in half precision or of several types; others are given as they are.

    Wrapped ones come without their wrappers, see `unwrap`.
    """
    inner = [unwrap(model) for model in models]
    if any(own is not model for own, model in zip(inner, models, strict=True)):
        models = inner
    types = {tensor.dtype for model in models for tensor in model.state_dict().values() if tensor.is_floating_point()}
    if len(types) <= 1 and types <= set(EXACT):
        return models
    return [evaluation_copy(model, torch.float32) for model in models]


def with_types_of(network: nn.Module, like: nn.Module) -> nn.Module:
    """Convert a network's tensors in place to the types that those of the same names have in another one."""
    types = {key: tensor.dtype for key, tensor in unwrap(like).state_dict().items()}
    for module_name, module in network.named_modules():
        prefix = f"{module_name}." if module_name else ""
        for name, parameter in module.named_parameters(recurse=False):
            kind = types.get(prefix + name, parameter.dtype)
            if kind != parameter.dtype:
                parameter.data = parameter.data.to(kind)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(types.get(prefix + name, buffer.dtype)))
    return network
