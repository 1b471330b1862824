"""Combine the parents into one object: their networks, shares and labels, and the ensemble's outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import TEMPERATURE, ensemble_logits, ensemble_outputs
from depfuse.io.checkpoint import state_digest
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.outputs import task_by_shape
from depfuse.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks whose outputs count as one.

    Its outputs are the share-weighted mean of the members' class probabilities, or of their numbers; those of the mean
    of their logits where they have a joint head. As a teacher it computes logits of softened probabilities (Hinton et
    al. 2015, section 2), see `ensemble_logits`.

    Attributes
    ----------
    networks
        The members; run in evaluation mode, and left as they are.
    shares
        One weight per member, summing to one.
    labels
        The members' label sets, where they differ.
    joint
        Whether they have a joint head, so that no member's logits are predictions by themselves.
    task
        What their outputs mean; by their shape where None.
    heads
        Keys of the weights of their joint head; those of the last layer where there are none.
    """

    networks: Sequence[nn.Module]
    shares: Sequence[float]
    labels: LabelSets | None = None
    joint: bool = False
    task: Task | None = None
    heads: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the members' weights, shares and labels."""
        digests = [state_digest(network.state_dict()) for network in self.networks]
        labels = None if self.labels is None else self.labels.sets
        return hashlib.sha256(f"{digests} {list(self.shares)} {labels} {self.joint}".encode()).hexdigest()

    def task_of(self, outputs: Tensor) -> Task:
        """Return what outputs (N, ...) mean."""
        return self.task or task_by_shape(outputs)

    def at(self, shares: Sequence[float]) -> Ensemble:
        """Give the members other shares."""
        return replace(self, shares=shares)

    def among(self, members: Sequence[int], shares: Sequence[float]) -> Ensemble:
        """Take some of the members, by number, as an ensemble with shares of its own."""
        labels = None if self.labels is None else self.labels.of(*members)
        networks = [self.networks[member] for member in members]
        return replace(self, networks=networks, shares=shares, labels=labels)

    def combine(self, outputs: Sequence[Tensor]) -> Tensor:
        """Combine each member's outputs (N, ...) to those of the ensemble (N, ...), see `ensemble_outputs`."""
        return ensemble_outputs(outputs, self.shares, self.labels, joint=self.joint, task=self.task)

    def combine_logits(self, outputs: Sequence[Tensor], temperature: float = TEMPERATURE) -> Tensor:
        """Combine each member's logits (N, C) to those that teach a child (N, C), see `ensemble_logits`."""
        return ensemble_logits(outputs, self.shares, self.labels, temperature, joint=self.joint, task=self.task)

    def __call__(self, images: Example, temperature: float = TEMPERATURE) -> Tensor:
        """Compute logits (N, C) in float32 for images, softened as `ensemble_logits` says."""
        with torch.no_grad(), evaluating(*self.networks):
            outputs = [run_network(network, images).float() for network in self.networks]
        return self.combine_logits(outputs, temperature)

    def divergence(self, network: nn.Module, images: Loader, temperature: float = TEMPERATURE) -> float:
        """Measure what distillation minimises: a network's `Task.divergence` from the ensemble, per image."""
        with torch.no_grad(), evaluating(network):
            total = 0.0
            for batch, _ in images:
                outputs = run_network(network, batch).float()
                total += float(self.task_of(outputs).divergence(outputs, self(batch, temperature), temperature))
            return total / images.count
