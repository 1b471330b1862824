"""How many outputs the networks of federated clients have, where a function builds one with any number of them.

The smallest example is `nn.Linear(16, n)`: with n = 2 and n = 3 its weight has shapes (2, 16) and (3, 16), so that a
client that sends (10, 16) in that place has n = 10.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from depfuse.errors import ArchitectureError
from depfuse.io.fitting import COUNTER
from depfuse.models.architecture import OTHER_NAMES

_TRIED = (2, 3)  # outputs of the networks that are compared


def takes_a_size(builder: Callable[..., nn.Module]) -> bool:
    """Tell whether a function or class takes an argument, such as how many outputs the network shall have."""
    try:
        return bool(inspect.signature(builder).parameters)
    except (TypeError, ValueError):  # of some that are written in C
        return True


def build_with(builder: Callable[..., nn.Module], outputs: int) -> nn.Module:
    """Build a network with so many outputs: by an argument of a usual name for that, or else by the first.

    Raises
    ------
    ArchitectureError
        What is built is no network.
    """
    parameters = inspect.signature(builder).parameters
    name = next((own for own in OTHER_NAMES["classes"] if own in parameters), None)
    network = builder(outputs) if name is None else builder(**{name: outputs})
    if not isinstance(network, nn.Module):
        raise ArchitectureError(f"the strategy's function gives a {type(network).__name__}: it must build a network")
    return network


def sizes_of(builder: Callable[..., nn.Module], sent: Sequence[Sequence[np.ndarray]]) -> list[int | None]:
    """Count the outputs of the networks that clients sent, None where what one sent is of another kind."""
    few, more = (build_with(builder, count).state_dict() for count in _TRIED)
    found: list[int | None] = []
    for arrays in sent:
        names = names_of(arrays, list(few)) or []
        counts = {
            size - less + _TRIED[0]
            for name, array in zip(names, arrays, strict=False)
            for size, less, larger in zip(array.shape, few[name].shape, more[name].shape, strict=False)
            if less != larger
        }
        found.append(counts.pop() if len(counts) == 1 else None)
    return found


def usual_size(sizes: Sequence[int | None]) -> int | None:
    """Choose the number of outputs that most clients have, the smallest of several; None where none is known."""
    known = Counter(size for size in sizes if size is not None)
    return min(known, key=lambda size: (-known[size], size), default=None)


def names_of(arrays: Sequence[Any], names: Sequence[str]) -> Sequence[str] | None:
    """Return the names of a state dict that arrays are of, all or those of no counters; None for any other number."""
    without = [name for name in names if not name.endswith(COUNTER)]
    return next((known for known in (names, without) if len(known) == len(arrays)), None)
