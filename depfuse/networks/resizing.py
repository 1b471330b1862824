"""Resizing of layers to other numbers of channels than their architecture has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from depfuse.errors import ArchitectureError


def resize(model: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Resize parameters and buffers of a network in place; those that change are zero afterwards.

    The channel counts of torch's own layers are updated. Whether the network still runs is not checked.

    Parameters
    ----------
    shapes
        State-dict key -> shape, for every tensor or for some; as many axes as before.

    Raises
    ------
    ArchitectureError
        A tensor does not exist, or has another number of axes.
    """
    state = model.state_dict()
    for key, shape in shapes.items():
        if key not in state or len(state[key].shape) != len(shape):
            raise ArchitectureError(f"{type(model).__name__} has no {key} with {len(shape)} axes to be resized")
    different = {key for key, shape in shapes.items() if state[key].shape != shape}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        local_names = {key.removeprefix(prefix) for key in different if key.rpartition(".")[0] == name}
        for local in local_names:
            old: Tensor = getattr(module, local)
            new = torch.zeros(shapes[prefix + local], dtype=old.dtype, device=old.device)
            if isinstance(old, nn.Parameter):
                setattr(module, local, nn.Parameter(new, requires_grad=old.requires_grad))
            else:
                module.register_buffer(local, new, persistent=True)
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        computed = f"{prefix}parametrizations."  # weights that are computed on access
        if any(key.rpartition(".")[0] == name or key.startswith(computed) for key in different):
            _update_counts(module)


def _update_counts(module: nn.Module) -> None:
    """Set a layer's channel counts by its tensors' shapes."""
    if isinstance(module, _ConvNd):
        depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
        first, second = module.weight.shape[:2]
        module.groups = first if depthwise else module.groups
        outer, inner = first, second * module.groups
        if module.transposed:
            outer, inner = second * module.groups, first
        module.out_channels, module.in_channels = outer, inner
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        sized = next(tensor for tensor in (module.weight, module.running_mean) if tensor is not None)
        module.num_features = len(sized)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
