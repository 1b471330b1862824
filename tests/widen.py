"""Networks whose channels are doubled, built slot by slot without the code that is tested with them."""

from __future__ import annotations

import torch
from torch import nn

from depfuse.groups import find_groups
from depfuse.groups.pairing import pair_groups


def doubled(narrow: nn.Module, wide: nn.Module, example: torch.Tensor, seed: int) -> nn.Module:
    """Give `wide` the function of `narrow`: its first channels are the narrow one's, the others are copies."""
    generator = torch.Generator().manual_seed(seed)
    own = find_groups(wide, example)
    theirs = pair_groups(own, find_groups(narrow, example))
    state = dict(narrow.state_dict())
    for group in own.free:
        size = theirs[group.name].size
        extra = torch.randint(size, (group.size - size,), generator=generator)
        origin = torch.cat([torch.arange(size), extra])[torch.randperm(group.size, generator=generator)]
        copies = torch.bincount(origin, minlength=size)
        for slot in theirs[group.name].slots:
            order = slot.index[origin].reshape(-1)
            taken = state[slot.key].index_select(slot.axis, order)
            if slot.role == "consumes":
                shape = [1] * taken.dim()
                shape[slot.axis] = -1
                taken = taken / copies[origin].repeat_interleave(slot.index.shape[1]).reshape(shape)
            state[slot.key] = taken
    wide.load_state_dict(state)
    return wide.eval()
