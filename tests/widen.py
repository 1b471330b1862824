"""Networks whose channels are doubled, built slot by slot without the code that is tested with them."""

from __future__ import annotations

import torch
from torch import nn

from depfuse.align.unequal_widths.pairing import pair_groups
from depfuse.groups import find_groups


def doubled(narrow: nn.Module, wide: nn.Module, example: torch.Tensor, seed: int) -> nn.Module:
    """Give `wide` the function of `narrow`: its channels are the narrow one's and copies of them, in any order."""
    generator = torch.Generator().manual_seed(seed)
    own = find_groups(wide, example)
    theirs = pair_groups(own, find_groups(narrow, example))
    state, shapes = dict(narrow.state_dict()), {key: tensor.shape for key, tensor in wide.state_dict().items()}
    origins = {}
    for group in own.free:
        size = theirs[group.name].size
        extra = torch.randint(size, (group.size - size,), generator=generator)
        origins[group.name] = torch.cat([torch.arange(size), extra])[torch.randperm(group.size, generator=generator)]
    for key, axis in {(slot.key, slot.axis): None for group in own.free for slot in group.slots}:
        old = state[key].movedim(axis, 0)
        new = torch.full((shapes[key][axis], *old.shape[1:]), float("nan"))
        for group in own.free:
            origin = origins[group.name]
            copies = torch.bincount(origin)
            places = [
                [slot for slot in side.slots if (slot.key, slot.axis) == (key, axis)]
                for side in (group, theirs[group.name])
            ]
            for slot, other in zip(*places, strict=True):
                for channel, source in enumerate(origin.tolist()):
                    share = copies[source] if slot.role == "consumes" else 1
                    new[slot.index[channel]] = old[other.index[source]] / share
        state[key] = new.movedim(0, axis)
    wide.load_state_dict(state)
    return wide.eval()
