"""Search for the channel groups of a network from an example input."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from depfuse.groups.assemble import assemble
from depfuse.groups.channel_group import ChannelGroups
from depfuse.groups.labels.classes import close
from depfuse.groups.labels.rules import Replay
from depfuse.groups.tracing.auxiliary_heads import trace_with_auxiliary
from depfuse.groups.tracing.branching import BranchWatch, fix_branches
from depfuse.groups.tracing.decisions import others_run
from depfuse.groups.tracing.overwrites import OverwriteWatch
from depfuse.networks.faithful import ForeignWatch, check_hooks
from depfuse.networks.forward import Example
from depfuse.networks.isolation import uncollected, undisturbed


@undisturbed()
@uncollected()
def find_groups(model: nn.Module, example: Example) -> ChannelGroups:
    """Find the channel groups of a network, not yet proved.

    The network is traced in eval mode, together with its auxiliary heads, on its own device, and left as it was.
    The channels of a module whose computation depends on values (`branching.py`) are fixed, but where these are the
    inputs' and the proof can take both paths (`decisions.py`).

    Parameters
    ----------
    model
        Any network; wrappers such as DataParallel and torch.compile are removed.
    example
        An input the network accepts, with its batch axis: a tensor, or a sequence of positional or a dict
        of keyword inputs.

    Raises
    ------
    ArchitectureError
        The forward pass raises on the example, or returns nothing that depends on it; or a copy of the network
        computes another function, because of its forward hooks.
    """
    check_hooks(model, example)
    with ForeignWatch(model) as foreign, BranchWatch(example) as watch, OverwriteWatch() as overwrites:
        traced, auxiliary = trace_with_auxiliary(model, example)
    foreign.check()
    replay = Replay(traced, overwrites.regions, watch.constants)
    replay.run()
    both_ways = bool(watch.decisions) and others_run(model, example)
    fix_branches(replay, watch.branches if both_ways else {**watch.branches, **watch.decisions})
    return replace(assemble(replay, close(replay.ledger)), auxiliary=auxiliary, both_ways=both_ways)
