r"""Weight norms of parents, whose directions have lengths that mean nothing.

A layer with a weight norm computes with :math:`W = g\,v / \|v\|`: of v the length is free, and grows with every step of
a training. Were v averaged as it is, the parent that trained for longer would count for more than its share. So each
parent's v is its W, and g the length of this.

Source: Salimans & Kingma 2016 (Weight normalization), section 2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm

from depfuse.networks.computed_weights import WEIGHT_NORM, computed_weights

Normed = tuple[str, str, _WeightNorm]  # state-dict keys of length and direction, and what makes the weight of both


def weight_norms(model: nn.Module) -> list[Normed]:
    """List a network's weight norms."""
    found = computed_weights(model, WEIGHT_NORM)
    return [(length, direction, _WeightNorm(norm.dim)) for norm, (length, direction) in found]


def with_directions(state: dict[str, Tensor], norms: list[Normed]) -> dict[str, Tensor]:
    """Replace each direction by the weight that it stands for, and its length by that weight's."""
    for length, direction, weight in norms:
        state[direction] = weight(state[length], state[direction])
        state[length] = state[length].abs()
    return state
