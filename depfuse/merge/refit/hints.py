"""What a refitted child can be taught of its parents' residual streams while it is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from depfuse.groups.depgraph import evaluation_copy
from depfuse.merge.refit.graph import State
from depfuse.merge.refit.streams import Streams
from depfuse.merge.refit.targets import Targets
from depfuse.merge.refit.units import Unit
from depfuse.running import watching


@dataclass(frozen=True, eq=False)
class Hints:
    """The streams of a child where each stage ends, and of its parents (Romero et al. 2015, section 2.2).

    Attributes
    ----------
    networks
        The parents in the child's channel order, in eval mode.
    places
        Names of the modules whose outputs the streams are, of the child and of each parent; there may be none.
    """

    networks: Sequence[nn.Module]
    places: Sequence[str]
    _streams: Streams

    @classmethod
    def create(
        cls,
        child: nn.Module,
        parents: Sequence[nn.Module],
        states: Sequence[State],
        images: Tensor,
        values: Mapping[fx.Node, Tensor],
        units: Sequence[Unit],
        targets: Targets,
    ) -> Hints:
        """Find the modules whose outputs are the child's streams: those that give the same values.

        Parameters
        ----------
        child
            The refitted network.
        parents, states
            Networks of the parents' outputs, and the aligned parents' tensors.
        images
            Some inputs.
        values
            The child's values for these, at the targets of the units at least.
        units, targets
            As for `Streams`.
        """
        streams = Streams(units, targets)
        with watching(child, [name for name, _ in child.named_modules() if name]) as outputs, torch.no_grad():
            child(images)
        found: dict[Unit, str] = {}
        for unit in streams.units:
            value = values[unit.target].relu() if unit.rectified else values[unit.target]
            names = (name for name, output in outputs.items() if _same(output, value))
            if (name := next(names, None)) is not None:
                found[unit] = name
        networks = [evaluation_copy(parent) for parent in parents] if found else []
        for network, state in zip(networks, states, strict=False):
            with torch.no_grad():
                for key, tensor in network.state_dict().items():
                    tensor.copy_(state[key])
        return cls(networks, list(found.values()), Streams(list(found), targets))

    def wanted(self, values: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """What each of the child's streams shall carry, from each parent's outputs at the places."""
        return self._streams.wanted(values)


def _same(output: Tensor, value: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    if output.shape != value.shape:
        return False
    return bool(torch.allclose(output, value, rtol=1e-3, atol=1e-4 * float(value.abs().max())))
