"""The proof: permute every free group at random, and the network's function must not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from depfuse.errors import GroupError
from depfuse.groups.channel_group import ChannelGroup, ChannelGroups, random_permutations
from depfuse.groups.depgraph import Example, evaluation_copy
from depfuse.running import evaluating

TOLERANCE = 1e-9


def prove_groups(
    model: nn.Module, groups: ChannelGroups, example: Example, *, seed: int = 0, tolerance: float = TOLERANCE
) -> ChannelGroups:
    r"""Prove the free groups in float64, and fix those that fail.

    A copy of the network gets generic values (every parameter and statistic is moved off special values such
    as a zero scale or a unit variance, under which a forgotten slot would not show). With f its function and
    f_P the function after random permutations of all free groups at once, the error is
    :math:`\max |f_P(x) - f(x)| / \max |f(x)|`, taken over all outputs, those of auxiliary heads included, and a random
    input x in the example's shape. If it exceeds the tolerance, the groups at fault are found by bisection and fixed.

    Returns
    -------
    ChannelGroups
        The same groups, with `proof_error` set and failing groups fixed.

    Raises
    ------
    GroupError
        The network's function is not finite or does not depend on its parameters, so that nothing can be
        proved, or does not give the same output twice.
    """
    network = evaluation_copy(model, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    state = _generic_state(network, generator)
    inputs = tree_map(lambda leaf: _generic_input(leaf, state, generator), example)
    modes = [(), groups.auxiliary] if groups.auxiliary else [()]

    def run(values: Mapping[str, Tensor]) -> list[Tensor]:
        return [output for mode in modes for output in _outputs(network, values, inputs, mode)]

    reference = run(state)
    scale = max((float(out.abs().max()) for out in reference if out.numel()), default=0.0)
    name = type(network).__name__
    if not all(bool(torch.isfinite(out).all()) for out in reference) or scale == 0.0:
        raise GroupError(f"{name} gives no finite, non-zero output on random values: its groups cannot be proved")
    permutations = random_permutations(groups, seed)

    def error(chosen: Sequence[ChannelGroup]) -> float:
        permuted: Mapping[str, Tensor] = state
        for group in chosen:
            permuted = group.permute(permuted, permutations[group.name])
        return _change(reference, run(permuted), scale)

    free = list(groups.free)
    largest = error(free)
    if largest <= tolerance:
        _check_power(name, groups, permutations, state, run, reference, scale)
        return replace(groups, proof_error=largest)
    if _change(reference, run(state), scale) > tolerance:
        raise GroupError(f"{name} gives different outputs for the same input: its groups cannot be proved")
    failing = _bisect(free, error, tolerance)
    reasons = {group.name: f"not proved: permuting it changes the output by {error([group]):.1e}" for group in failing}
    return prove_groups(model, groups.fix(reasons), example, seed=seed, tolerance=tolerance)


def _bisect(chosen: list[ChannelGroup], error: Any, tolerance: float) -> list[ChannelGroup]:
    """The groups that fail by themselves, or the last that fails together with others."""
    if not chosen or error(chosen) <= tolerance:
        return []
    if len(chosen) == 1:
        return chosen
    half = len(chosen) // 2
    found = _bisect(chosen[:half], error, tolerance) + _bisect(chosen[half:], error, tolerance)
    return found or chosen[-1:]


def _check_power(
    name: str,
    groups: ChannelGroups,
    permutations: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    run: Callable[[Mapping[str, Tensor]], list[Tensor]],
    reference: Sequence[Tensor],
    scale: float,
) -> None:
    """A proof must be able to fail: with only the first slot of each group permuted, the output changes."""
    broken = dict(state)
    for group in groups.free:
        slot = group.slots[0]
        broken[slot.key] = slot.permute(broken[slot.key], permutations[group.name])
    if groups.free and _change(reference, run(broken), scale) <= 1e-6:
        raise GroupError(
            f"the output of {name} hardly depends on its channels on random values: its groups cannot be proved"
        )


def _generic_state(network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """The network's tensors, each entry moved by a tenth of its tensor's scale; variances stay positive."""
    state = {}
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = (float(bound) for bound in tensor.aminmax())
            size = max(abs(low), abs(high)) or 0.1
            spread = 0.5 * size if low == high else 0.1 * (high - low)
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            tensor = noise.sub_(0.0 if low >= 0.0 else 0.5).mul_(spread).add_(tensor)
        state[key] = tensor
    return state


def _generic_input(leaf: Any, state: Mapping[str, Tensor], generator: torch.Generator) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    device = next(iter(state.values())).device if state else leaf.device
    return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(device)


def _outputs(
    network: nn.Module, state: Mapping[str, Tensor], inputs: Example, auxiliary: Sequence[str]
) -> list[Tensor]:
    arguments: Any = (inputs,) if isinstance(inputs, Tensor) else () if isinstance(inputs, dict) else tuple(inputs)
    keywords = inputs if isinstance(inputs, dict) else {}
    with torch.no_grad(), evaluating(network, auxiliary=auxiliary):
        result = functional_call(network, dict(state), arguments, keywords)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _change(reference: Sequence[Tensor], outputs: Sequence[Tensor], scale: float) -> float:
    """Largest absolute difference over all outputs, relative to the largest output."""
    errors = [float((a - b).abs().max()) for a, b in zip(reference, outputs, strict=True) if a.numel()]
    largest = max(errors, default=0.0) / scale
    return largest if largest == largest else float("inf")
