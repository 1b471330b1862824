"""Networks built to fit their checkpoints and the data, and how many class scores they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from depfuse.errors import ArchitectureError
from depfuse.io.checkpoint import Checkpoint
from depfuse.models import build_network, with_classes
from depfuse.models.origin import FromFile
from depfuse.models.transformers_networks import names_in_files
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.choose import by_shape
from depfuse.tasks.selection import find_scores


def built(
    architecture: str, checkpoint: Checkpoint, known: Sequence[int] | None, classes: int, channels: int
) -> tuple[nn.Module, Checkpoint]:
    """Build the network for a checkpoint, with as many outputs as its file has where nothing says how many it knows.

    The checkpoint comes with the network's names of tensors. Errors in its card's architecture name the file.
    """
    count = len(known) if known else classes
    settings: dict[str, Any] = {"fitting": checkpoint.state, "in_channels": channels}
    settings |= {"classes": count} if count else {}
    try:
        model = build_network(architecture, **settings)
        checkpoint = checkpoint.fitted_to(model.state_dict(), names_in_files(model))
        found = _outputs_in(checkpoint, model)
        if found is not None:
            # One string stands for parents of different labels, whatever number of classes it says.
            own = architecture if known is None else with_classes(architecture, found)
            model = build_network(own, **{**settings, "classes": found})
        return model.float(), checkpoint  # images and calibration are of single precision
    except ArchitectureError as error:
        if isinstance(architecture, FromFile):
            raise ArchitectureError(f"{checkpoint.path}: {error}") from None
        raise


def _outputs_in(checkpoint: Checkpoint, model: nn.Module) -> int | None:
    """Count the outputs of a checkpoint that fits its network but for these; None where it fits, or does not at all."""
    own = {key: tensor.shape for key, tensor in model.state_dict().items()}
    wrong = [key for key, tensor in checkpoint.state.items() if key in own and own[key] != tensor.shape]
    found = [checkpoint.state[key].shape for key in wrong]
    alike = all(shape and own[key] and own[key][1:] == shape[1:] for key, shape in zip(wrong, found, strict=True))
    if not wrong or not alike or len({shape[0] for shape in found}) > 1 or len({own[key][0] for key in wrong}) > 1:
        return None
    return int(found[0][0])


def class_scores(model: nn.Module, example: torch.Tensor, task: str) -> int | None:
    """Count the class scores that a network gives for an image; None where its outputs are no row of them."""
    with torch.no_grad(), evaluating(model):
        outputs = run_network(model, example)
    scores = find_scores(outputs)
    outputs = outputs if scores is None else scores(outputs)
    if not isinstance(outputs, torch.Tensor):
        return None
    if task not in ("auto", "none", "classes") or by_shape(outputs).task != "classes":
        return None
    return outputs.shape[1]
