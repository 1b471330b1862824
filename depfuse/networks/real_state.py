"""State dicts of real numbers: complex weights as pairs of them.

What is matched and averaged are numbers, and `double()` of a complex tensor would drop its imaginary part. The pair is
one more axis at the end, so that the axes of channel groups keep their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def real_state(model: nn.Module) -> dict[str, Tensor]:
    """Give a network's state dict with a complex tensor (...) as a view (..., 2) of its real and imaginary parts."""
    return {key: as_real(tensor) for key, tensor in model.state_dict().items()}


def as_stored(state: Mapping[str, Tensor], like: nn.Module) -> dict[str, Tensor]:
    """Undo `real_state`: give pairs as the complex numbers that a network's own tensors are."""
    pairs = {key for key, tensor in like.state_dict().items() if tensor.is_complex()}
    return {key: torch.view_as_complex(t.contiguous()) if key in pairs else t for key, t in state.items()}


def as_real(tensor: Tensor) -> Tensor:
    """View a complex tensor (...) as real numbers (..., 2); others are given as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
