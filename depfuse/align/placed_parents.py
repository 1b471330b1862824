"""Parents whose channels are placed in a universe's order, and the mean of their weights there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from depfuse.align.trees import Placement
from depfuse.groups.nesting import Orbit
from depfuse.networks.real_state import real_state

LEAST_SHARE = 1e-3  # of an equal share: a parent without weight is matched nevertheless

Placed = dict[int, dict[str, Placement]]  # parent -> root name -> where the universe's channels come from


class PlacedParents:
    """Parents with the placement of the universe's channels in each.

    The share-weighted sum of their weights is updated when one moves, so that a mean costs two networks, not all.

    Parameters
    ----------
    models
        The parents.
    roots
        Orbits of their free groups.
    shares
        One per parent; equal ones where None.

    Attributes
    ----------
    placed
        The parents' placements; absent until they are matched.
    shares
        One share per parent, above zero and summing to one.
    keys
        Floating-point tensors that have one shape in all parents.
    """

    def __init__(self, models: Sequence[nn.Module], roots: Sequence[Orbit], shares: Sequence[float] | None) -> None:
        self.models, self.roots = models, roots
        least = LEAST_SHARE / len(models)
        each = [max(share, least) for share in shares or [1.0 / len(models)] * len(models)]
        self.shares = [share / sum(each) for share in each]
        self.placed: Placed = {}
        states = [real_state(model) for model in models]
        self.keys = [
            key
            for key, tensor in states[0].items()
            if tensor.is_floating_point() and all(state[key].shape == tensor.shape for state in states)
        ]
        self._total: dict[str, Tensor] | None = None

    def forget_mean(self) -> None:
        """Sum the weights anew when next needed: `placed` was set as a whole."""
        self._total = None

    def _aligned(self, parent: int) -> dict[str, Tensor]:
        state = real_state(self.models[parent])
        for root in self.roots:
            state = root.permute(state, self.placed[parent][root.name])
        return {key: state[key] for key in self.keys}

    def mean_of_others(self, parent: int) -> dict[str, Tensor]:
        """Average the weights of the other parents placed so far, by shares, in the universe's order."""
        if self._total is None:
            for placed in self.placed:
                self._count(placed, self.shares[placed])
        assert self._total is not None
        aligned = self._aligned(parent) if parent in self.placed else None
        share = sum(self.shares[other] for other in self.placed if other != parent)
        mean = {}
        for key, tensor in self._total.items():
            rest = tensor if aligned is None else tensor - self.shares[parent] * aligned[key].double()
            mean[key] = (rest / share).to(real_state(self.models[parent])[key].dtype)
        return mean

    def _count(self, parent: int, share: float) -> None:
        aligned = self._aligned(parent)
        if self._total is None:
            self._total = {key: torch.zeros_like(tensor, dtype=torch.float64) for key, tensor in aligned.items()}
        for key, tensor in aligned.items():
            self._total[key] += share * tensor.double()

    def _place(self, parent: int, placements: Mapping[str, Placement]) -> None:
        """Place a parent's channels, and update the mean."""
        if self._total is not None and parent in self.placed:
            self._count(parent, -self.shares[parent])
        self.placed[parent] = {**self.placed.get(parent, {}), **placements}
        if self._total is not None:
            self._count(parent, self.shares[parent])
