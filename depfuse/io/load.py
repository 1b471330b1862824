"""Load a network from a file or folder, whatever says what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into, load_network
from depfuse.models.registry import build_network, built_by, with_settings


def load(
    path: str | Path,
    arch: str | Callable[[], nn.Module] | None = None,
    *,
    key: str | None = None,
    trust: bool = False,
    **defaults: Any,
) -> nn.Module:
    """Load the network in a file, or in a folder as hubs have it, in evaluation mode on the CPU.

    Parameters
    ----------
    path
        A checkpoint of any kind, or a folder with one; see `read_checkpoint`.
    arch
        What the network is: an architecture as `build_network` takes it, or a class or function that builds it; of a
        LightningModule the arguments are the file's hyper-parameters. Where None, what the card of the file or the
        config.json of the folder says, as long as it is built in or a network of torchvision, timm or transformers.
    key
        Where the weights are in the file, with dots for depth, where it holds several sets, such as
        ``"state_dict_ema"``.
    trust
        See `load_network`.
    **defaults
        Settings that the architecture leaves open, such as ``in_channels``.

    Raises
    ------
    CheckpointError
        The file does not say what network it is, and `arch` is not given; or its weights do not fit.
    ArchitectureError
        `arch` builds no network, or the card names code of somebody's own.
    """
    if arch is None:
        return load_network(path, key=key, trust=trust, **defaults)
    checkpoint = read_checkpoint(path, key)
    if isinstance(arch, str):
        if checkpoint.card is not None and checkpoint.card.classes is not None:
            defaults = {"classes": len(checkpoint.card.classes), **defaults}
        network = build_network(with_settings(arch, checkpoint.settings), **defaults)
    else:
        network = built_by(arch, checkpoint.settings)
    load_into(network, checkpoint)
    return network.eval()
