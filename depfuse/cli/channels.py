"""Images in the channels that networks take: grey ones for colour, or colour for grey."""

from __future__ import annotations

import warnings

from torch import nn

from depfuse.data import DataSet
from depfuse.data.channels import with_channels
from depfuse.errors import DataError, DepfuseWarning
from depfuse.io.checkpoint import Checkpoint
from depfuse.models import check_input


def in_channels_of(model: nn.Module, checkpoint: Checkpoint, data: DataSet) -> DataSet:
    """Give the data the channels that a network takes, and say so; as they are where they suit, or nothing else would.

    Parameters
    ----------
    model
        The network, built for the data's channels where its architecture leaves them open.
    checkpoint
        Its weights.
    data
        The data.
    """
    given = data.image_shape[0]
    wanted = _channels_in(model, checkpoint, given) or _channels_of(model, data)
    changed = None if wanted in (None, given) else with_channels(data, int(wanted or 0))
    if changed is None:
        return data
    said = (
        f"grey, and {checkpoint.path} takes images in colour: red, green and blue are equal"
        if wanted == 3
        else f"in colour, and {checkpoint.path} takes grey ones: their luminance is taken"
    )
    warnings.warn(
        f"{data.name}: the images are {said}",
        DepfuseWarning,
        stacklevel=3,
    )
    return changed


def _channels_in(model: nn.Module, checkpoint: Checkpoint, given: int) -> int | None:
    """Return the channels of a checkpoint's images, where it differs from its network in these alone."""
    own = model.state_dict()
    wrong = [key for key, tensor in checkpoint.state.items() if key in own and own[key].shape != tensor.shape]
    if len(wrong) != 1:
        return None
    wanted, found = own[wrong[0]].shape, checkpoint.state[wrong[0]].shape
    alike = len(wanted) == len(found) == 4 and wanted[:1] + wanted[2:] == found[:1] + found[2:]
    return int(found[1]) if alike and wanted[1] == given else None


def _channels_of(model: nn.Module, data: DataSet) -> int | None:
    """Return the channels that a network's first convolution takes, where it does not run on the data's."""
    try:
        check_input(model, data.example())
    except DataError:
        first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        return None if first is None else first.in_channels
    return None
