r"""Weight norms of parents, whose directions have lengths that mean nothing.

A layer with a weight norm computes with :math:`W = g\,v / \|v\|`: of v the length is free, and grows with every step of
a training. Were v averaged as it is, the parent that trained for longer would count for more than its share. So each
parent's v is its W, and g the length of this.

Source: Salimans & Kingma 2016 (Weight normalization), section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm


class Normed(NamedTuple):
    """State-dict keys of a weight's length and direction, and what makes the weight of both."""

    length: str
    direction: str
    weight: _WeightNorm


def weight_norms(model: nn.Module) -> list[Normed]:
    """List the weight norms by torch's parametrisation and by its older hook."""
    return list(_found(model))


def with_directions(state: dict[str, Tensor], norms: list[Normed]) -> dict[str, Tensor]:
    """Replace each direction by the weight that it stands for, and its length by that weight's."""
    for length, direction, weight in norms:
        state[direction] = weight(state[length], state[direction])
        state[length] = state[length].abs()
    return state


def _found(model: nn.Module) -> Iterator[Normed]:
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, ParametrizationList) and len(module) == 1 and isinstance(module[0], _WeightNorm):
            yield Normed(f"{prefix}original0", f"{prefix}original1", module[0])
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield Normed(f"{prefix}{hook.name}_g", f"{prefix}{hook.name}_v", _WeightNorm(hook.dim))
