"""Auxiliary heads: layers that a network runs in training mode only, as GoogLeNet and Inception do."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse.errors import ArchitectureError
from depfuse.groups.tracing.depgraph import Trace, trace
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating


def trace_with_auxiliary(model: nn.Module, example: Example) -> tuple[Trace, tuple[str, ...]]:
    """Trace in evaluation mode or, where that leaves parameters unused, with the heads that use them.

    Modules above an unused parameter are put into training mode by themselves (layers such as BatchNorm and dropout
    are not). This is kept only where it takes more of the parameters into the computation and the network still
    gives the same output twice.

    Returns
    -------
    Trace
        The computation of the mode chosen.
    tuple of str
        Names of the modules in training mode; empty for evaluation mode.
    """
    plain = trace(model, example)
    auxiliary = _above(plain)
    if not auxiliary or not _is_deterministic(model, example, auxiliary):
        return plain, ()
    try:
        richer = trace(model, example, auxiliary)
    except ArchitectureError:
        return plain, ()
    return (richer, auxiliary) if richer.unused < plain.unused else (plain, ())


def _above(plain: Trace) -> tuple[str, ...]:
    """List modules with children that hold an unused parameter anywhere below them."""
    names: dict[str, None] = {}
    for key in sorted(plain.unused):
        parts = key.split(".")[:-1]
        names.update(dict.fromkeys(".".join(parts[:depth]) for depth in range(len(parts) + 1)))
    return tuple(name for name in names if next(plain.modules[name].children(), None) is not None)


def _is_deterministic(model: nn.Module, example: Example, auxiliary: tuple[str, ...]) -> bool:
    network = evaluation_copy(model, torch.float32, shared=True)
    try:
        with torch.no_grad(), evaluating(network, auxiliary=auxiliary):
            first, second = (tree_leaves(run_network(network, example)) for _ in range(2))
    except Exception:  # whatever a mode that was not asked for does, evaluation mode remains
        return False
    if len(first) != len(second):
        return False
    return all(not isinstance(a, Tensor) or torch.equal(a, b) for a, b in zip(first, second, strict=True))
