"""What no network may be: values that no training can have left, outputs that are no numbers or always the same."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from depfuse.errors import RecipeError

VARIANCE = "running_var"


def check_variances(state: Mapping[str, Tensor], number: int) -> None:
    """Refuse a parent with negative variances, of which a BatchNorm would take the root.

    Parameters
    ----------
    state
        Its state dict.
    number
        Of the parent, from 1.

    Raises
    ------
    RecipeError
        There are some; it names the parent and the key.
    """
    for key, tensor in state.items():
        if key.rpartition(".")[2] == VARIANCE and bool((tensor < 0).any()):
            raise RecipeError(
                f"parent {number} has negative variances in {key} ({int((tensor < 0).sum())} of {tensor.numel()}): "
                "no images give these, the checkpoint is damaged or was changed"
            )
