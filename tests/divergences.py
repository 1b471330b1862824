"""Divergences of outputs with their derivatives, by what the outputs are by their shape."""

from __future__ import annotations

import torch
from torch import Tensor

from depfuse.ensemble.targets import TEMPERATURE
from depfuse.tasks.outputs import task_by_shape


def divergence(outputs: Tensor, target: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    return task_by_shape(outputs).divergence(outputs, target, temperature)


def slope(outputs: Tensor, target: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    return task_by_shape(outputs).slope(outputs, target, temperature)


def curvature_product(change: Tensor, outputs: Tensor) -> Tensor:
    return task_by_shape(outputs).curvature_product(change, outputs, TEMPERATURE)


def sample(outputs: Tensor, generator: torch.Generator, temperature: float = TEMPERATURE) -> Tensor:
    return task_by_shape(outputs).sample(outputs, generator, temperature)
