"""From a network and an example input to its channel groups."""

from __future__ import annotations

import torch
from torch import nn

from depfuse.errors import ArchitectureError
from depfuse.groups.assemble import assemble
from depfuse.groups.channel_group import ChannelGroups
from depfuse.groups.depgraph import Example, trace, unwrap
from depfuse.groups.labels import settle
from depfuse.groups.rules import NeedsValues, Replay


def find_groups(model: nn.Module, example: Example) -> ChannelGroups:
    """Channel groups of a network, not yet proved.

    The network is traced once in eval mode, first on the meta device (shapes only, next to free) and, where
    values are needed, on its own device. The network itself is left as it was.

    Parameters
    ----------
    model
        Any network; wrappers such as DataParallel and torch.compile are looked through.
    example
        An input the network accepts, with its batch axis: a tensor, or a sequence of positional or a dict
        of keyword inputs.

    Raises
    ------
    ArchitectureError
        The forward pass raises on the example, or returns nothing that depends on it.
    """
    network = unwrap(model)
    try:
        replay = Replay(trace(network, example, torch.device("meta")))
        replay.run()
    except (NeedsValues, ArchitectureError):
        tensors = [*network.parameters(), *network.buffers()]
        replay = Replay(trace(network, example, tensors[0].device if tensors else torch.device("cpu")))
        replay.run()
    return assemble(replay, settle(replay.ledger))
