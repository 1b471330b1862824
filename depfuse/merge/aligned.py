"""The aligned parents of a child: what is averaged, refitted towards and renormalised by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.groups import ChannelGroups
from depfuse.merge.shares import Shares
from depfuse.networks.forward import Example


@dataclass(frozen=True, eq=False)
class AlignedParents:
    """Parents of one width with their couplings and shares.

    Attributes
    ----------
    networks
        The parents, each in the order of its own channels.
    groups
        Their channel groups.
    couplings
        One mapping (group name -> coupling) per parent, to the child's channel order.
    shares
        One weight per parent, summing to one, of the whole network or of each tensor.
    example
        An input (N, ...), where one is known.
    """

    networks: Sequence[nn.Module]
    groups: ChannelGroups
    couplings: Sequence[Couplings]
    shares: Shares | Sequence[float]
    example: Example | None = None

    @property
    def permuted(self) -> bool:
        """Whether every coupling is a permutation."""
        return all(coupling.permutation is not None for couplings in self.couplings for coupling in couplings.values())

    def states(self) -> list[dict[str, Tensor]]:
        """Apply each parent's couplings to its state dict."""
        return [
            apply_couplings(self.groups, couplings, network.state_dict())
            for network, couplings in zip(self.networks, self.couplings, strict=True)
        ]
