"""Conversion of state dicts of other programs to the names and layouts of torch and of a network."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor, nn

from depfuse.errors import DepfuseWarning
from depfuse.io.paddle_and_jittor import Layout

_WRAPPERS = ("module.", "_orig_mod.")


def without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DataParallel and torch.compile from all keys."""
    for _ in range(4):
        for wrapper in _WRAPPERS:
            if state and all(key.startswith(wrapper) for key in state):
                state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def in_layout_of(model: nn.Module, state: dict[str, Tensor], path: Path, layout: Layout) -> dict[str, Tensor]:
    """Transpose the weights of linear layers where the file keeps them as (inputs, outputs)."""
    if layout == "torch":
        return state
    owned = [
        f"{name}.weight".removeprefix(".") for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    linear = [key for key in owned if key in state and state[key].dim() == 2]
    if layout == "paddle?":
        # The file as a whole has one layout, which one weight that is not square reveals.
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        telling = [key for key in linear if shapes[key][0] != shapes[key][1]]
        if telling and all(state[key].shape == shapes[key] for key in telling):
            return state
        if linear and not telling:
            warnings.warn(
                f"{path} does not say whether its square linear weights are transposed: "
                "they are taken to be, as PaddlePaddle stores them",
                DepfuseWarning,
                stacklevel=3,
            )
    return {**state, **{key: state[key].T for key in linear}}
