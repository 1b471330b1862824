"""Threads that suit the work of the networks that a command runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from depfuse.distributed.threads import may_suit, suit_threads
from depfuse.networks.counting import multiply_adds
from depfuse.networks.forward import Example


def suit_threads_to(models: Sequence[nn.Module], example: Example) -> None:
    """Compute with one thread from now on where all networks are small, see `suit_threads`; not on a GPU.

    Parameters
    ----------
    models
        Networks on one device.
    example
        One input of theirs (1, C, H, W), on the CPU.
    """
    devices = {parameter.device.type for model in models for parameter in model.parameters()}
    if may_suit() and devices == {"cpu"}:
        suit_threads(max(multiply_adds(model, example) for model in models))
