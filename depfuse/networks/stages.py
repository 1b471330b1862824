"""Stages of a network: layers that work at one resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating, removing


def stages_of(model: nn.Module, example: Example) -> tuple[dict[str, int], int]:
    """Find the stages of a network; return layer name -> stage, from 0, of the layers that ran, and their count.

    A new stage begins with the first layer whose output has fewer positions than all before it. Layers without
    positions or with a single one (a gate, the head) belong to the stage in which they run; in a network that has
    positions nowhere, every layer with weights is a stage of its own.

    Parameters
    ----------
    example
        An input (1, ...).
    """
    ran: list[tuple[str, int]] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                ran.append((name, output[0, 0].numel() if output.dim() > 3 else 1))

        return hook

    layers = [
        (name, module) for name, module in model.named_modules() if next(module.parameters(False), None) is not None
    ]
    handles = [module.register_forward_hook(note(name)) for name, module in layers]
    with removing(handles), torch.no_grad(), evaluating(model):
        run_network(model, example)
    stages: dict[str, int] = {}
    if all(positions == 1 for _, positions in ran):
        for name, _ in ran:
            stages.setdefault(name, len(stages))
        return stages, len(stages)
    fewest = max(positions for _, positions in ran)
    stage = 0
    for name, positions in ran:
        if 1 < positions < fewest:
            stage, fewest = stage + 1, positions
        stages.setdefault(name, stage)
    return stages, stage + 1
