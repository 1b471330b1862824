"""What networks return for some images, looked at to tell what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.inputs import count_samples
from depfuse.data.loader import Loader
from depfuse.data.stream import Stream
from depfuse.errors import DataError
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating

IMAGES = 250  # of which outputs are looked at
SEVERAL = 3  # of which the tensors that have an entry for each are found
MAPS = 32  # of which maps are looked at, to tell what they are


@dataclass(frozen=True, eq=False)
class Seen:
    """What networks return for some images."""

    networks: Sequence[nn.Module]
    images: Loader | Stream | None
    example: Example

    def first(self, count: int) -> Some:
        """Run them on the first images, once."""
        if count not in self._found:
            self._found[count] = self._run(count)
        return self._found[count]

    @cached_property
    def _found(self) -> dict[int, Some]:
        return {}

    def _run(self, count: int) -> Some:
        batches = [self.example] if self.images is None else [batch for batch, _ in self.images.first(count)]
        with torch.no_grad(), evaluating(*self.networks):
            outputs = [torch.cat([run_network(own, batch).float() for batch in batches]) for own in self.networks]
        for number, own in enumerate(outputs, 1):
            broken = own.isnan().reshape(len(own), -1).any(1)
            if bool(broken.any()):
                raise DataError(
                    f"parent {number} gives NaN for {int(broken.sum())} of {len(own)} calibration images, from which"
                    " nothing can be learned: leave such images out, or mend the network"
                )
        tensors = [batch for batch in batches if isinstance(batch, Tensor)]
        alike = len(tensors) == len(batches) and len({batch.shape[1:] for batch in tensors}) == 1
        return Some(outputs, torch.cat(tensors) if alike else None)


@dataclass(frozen=True, eq=False)
class Some:
    """Each network's outputs (N, ...), and the images where they are one tensor."""

    outputs: list[Tensor]
    inputs: Tensor | None


def count_of(batch: Example, otherwise: int) -> int:
    """Count the images of a batch, as far as it holds a tensor."""
    try:
        return count_samples(batch)
    except StopIteration:
        return otherwise


def run_or_none(network: nn.Module, batch: Example) -> Any:
    """Run a network; None where it fails."""
    with torch.no_grad(), evaluating(network):
        try:
            return run_network(network, batch)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # whatever the user's network raises
            return None
