"""Merging in part: channels of the parents that have no good counterpart stand side by side in the child.

Where the channels of two parents are merged, the child computes their average; where they are kept apart, each parent's
own channel, from what it has of that parent's inputs. The smallest example is a hidden layer with two channels. Merged,
the child has two; with the second pair kept apart, it has three: the average of the first pair, and both of the second,
whose outgoing weights count with their parents' shares. With all pairs kept apart, the child is the ensemble.
(Stoica et al. 2024, ZipIt!, section 4, on merging in part.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.align.moments import collect_moments
from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroup, ChannelGroups, find_groups, prove_groups
from depfuse.groups.depgraph import evaluation_copy
from depfuse.groups.stages import stages_of
from depfuse.groups.widening import Axis, Widened, hosts, make_room, spread
from depfuse.recipe import Recipe
from depfuse.resizing import resize
from depfuse.running import evaluating, modules_in_order

Owners = Mapping[Axis, Tensor]
"""(key, axis) -> (length,) int64: the parent whose alone a position is; -1 where it is shared."""


@dataclass(frozen=True, eq=False)
class Apart:
    """Parents at the width of a child that keeps some of their channels apart.

    Attributes
    ----------
    models
        One network per parent with its function, in the child's order of channels; silent where others are alone.
    unmatched
        The same with nothing matched.
    template
        A network of the child's width, if one was given.
    groups
        Of the child's width, proved.
    owners
        Whose alone the child's channels are.
    kept
        Group -> how many of its pairs are kept apart.
    merged
        Groups that have no room, and are merged.
    settled
        Modules that run before any whose channels are merged: they do in the child what they do in the parents.
    """

    models: list[nn.Module]
    unmatched: list[nn.Module]
    template: nn.Module | None
    groups: ChannelGroups
    owners: Owners
    kept: Mapping[str, int]
    merged: tuple[str, ...]
    settled: tuple[str, ...]


def keep_apart(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    recipe: Recipe,
    example: Tensor,
    calibration: Loader | None,
    template: nn.Module | None = None,
) -> Apart:
    """Give the parents room for the channels that the recipe keeps apart, in the order of their couplings.

    Raises
    ------
    RecipeError
        Couplings are soft, there are fewer stages than asked for, or no group has room.
    """
    if any(coupling.permutation is None for found in couplings for coupling in found.values()):
        raise RecipeError(f"channels are kept apart by pairs, and solver {recipe.solver} gives none: choose emd")
    aligned = [
        _with_state(m, apply_couplings(groups, c, m.state_dict())) for m, c in zip(models, couplings, strict=True)
    ]
    host = hosts(models[0], groups, example)
    chosen = _chosen(aligned, groups, recipe, example, calibration)
    merged = tuple(name for name, pairs in chosen.items() if len(pairs) and name not in host)
    chosen = {name: pairs for name, pairs in chosen.items() if len(pairs) and name in host}
    if merged and not chosen:
        raise RecipeError(f"no channels can be kept apart: {merged[0]} and all others have no room in this network")
    counts: dict[str, int] = {}
    begins: dict[str, int] = {}
    for name, pairs in chosen.items():
        begins[name] = counts.get(host[name], 0)
        counts[host[name]] = begins[name] + len(pairs) * (len(models) - 1)
    room = make_room(groups, counts, models[0].state_dict())
    owners = {axis: torch.full((len(source),), -1) for axis, source in room.source.items()}
    sources = [dict(room.source) for _ in models]
    for name, pairs in chosen.items():
        _move(groups[name], groups[host[name]], pairs, begins[name], room, sources, owners)
    networks = [_spread_out(model, own, room) for model, own in zip(aligned, sources, strict=True)]
    return Apart(
        networks,
        [_spread_out(model, room.source, room) for model in models],
        None if template is None else _spread_out(template, room.source, room),
        prove_groups(networks[0], find_groups(networks[0], example), example, seed=recipe.seed),
        owners,
        {name: len(pairs) for name, pairs in chosen.items()},
        merged,
        _settled(networks[0], [group for group in groups if len(chosen.get(group.name, ())) < group.size], example),
    )


def _settled(network: nn.Module, merged: Sequence[ChannelGroup], example: Tensor) -> tuple[str, ...]:
    """Names of the modules that run before all those that write to or scale channels of some groups."""
    keys = {slot.key for group in merged for slot in group.slots if slot.role != "consumes"}
    mixing = {key.rpartition(".")[0] for key in keys}
    given = example.to(next(network.parameters()).dtype)
    with torch.no_grad(), evaluating(network):
        order = modules_in_order(network, lambda: network(given))
    leaves = [name for name in order if next(network.get_submodule(name).children(), None) is None]
    first = next((place for place, name in enumerate(leaves) if name in mixing), len(leaves))
    # Bare parameters belong to modules that run other modules: where they lie cannot be told.
    return tuple(leaves[:first]) if mixing <= set(leaves) else ()


def _move(
    group: ChannelGroup,
    host: ChannelGroup,
    pairs: Tensor,
    begin: int,
    room: Widened,
    sources: Sequence[dict[Axis, Tensor]],
    owners: Mapping[Axis, Tensor],
) -> None:
    """Leave pairs (k,) of a group to parent 0 where they stand, and bring the others' to new channels of its host."""
    for slot in group.slots:
        axis = slot.key, slot.axis
        stand = room.moved[axis][slot.index[pairs]]
        places = [number for number, other in enumerate(host.slots) if (other.key, other.axis) == axis]
        number = host.slots.index(slot) if group is host else places[0]
        new = room.places[host.name, number][begin:].reshape(-1, stand.shape[1])
        if slot.role != "consumes":
            owners[axis][stand] = 0
        for parent in range(1, len(sources)):
            own = sources[parent][axis] = sources[parent][axis].clone()
            goes = new[(parent - 1) * len(pairs) : parent * len(pairs)]
            own[goes], own[stand] = slot.index[pairs], -1
            if slot.role != "consumes":
                owners[axis][goes] = parent


def _chosen(
    aligned: Sequence[nn.Module], groups: ChannelGroups, recipe: Recipe, example: Tensor, calibration: Loader | None
) -> dict[str, Tensor]:
    """Group -> the pairs (k,) int64 to keep apart."""
    whole = _whole_groups(aligned[0], groups, recipe, example)
    distances = _distances(aligned, groups, calibration) if recipe.keep_worst else {}
    chosen = {}
    for group in groups.free:
        if group.name in whole:
            chosen[group.name] = torch.arange(group.size)
        elif recipe.keep_worst:
            count = round(recipe.keep_worst * group.size)
            worst = torch.argsort(distances[group.name], descending=True, stable=True)[:count]
            chosen[group.name] = worst.sort().values
    return chosen


def _whole_groups(model: nn.Module, groups: ChannelGroups, recipe: Recipe, example: Tensor) -> set[str]:
    """Groups that only layers of the first or last stages write to, as many stages as the recipe keeps apart."""
    if not recipe.keep_first and not recipe.keep_last:
        return set()
    stages, count = stages_of(model, example)
    for option, asked in (("--keep-first", recipe.keep_first), ("--keep-last", recipe.keep_last)):
        if asked > count:
            raise RecipeError(f"{option} {asked} is more than the {count} stages of {type(model).__name__}")
    found = set()
    for group in groups.free:
        writers = {slot.key.rpartition(".")[0] for slot in group.slots if slot.role == "produces"}
        own = [stages[name] for name in writers if name in stages]
        if own and (max(own) < recipe.keep_first or min(own) >= count - recipe.keep_last):
            found.add(group.name)
    return found


def _distances(aligned: Sequence[nn.Module], groups: ChannelGroups, calibration: Loader | None) -> dict[str, Tensor]:
    """Group -> how far apart the channels of each matched pair are (n,), for what comes after them.

    With images, the variance of the difference of the pair's activations, relative to the others at a tap and summed
    over taps and parents, times the squared weights that read the pair. Without, the squared distance of its weights.
    """
    found: dict[str, Tensor] = {}
    states = [model.state_dict() for model in aligned]
    if calibration is not None:
        for moments in collect_moments(aligned, groups, calibration, "after"):
            for name, taps in moments.items():
                for tap in taps:
                    squares = tap.target_square + tap.source_square - 2 * tap.product.diagonal()
                    mean = (tap.target_sum - tap.source_sum) / tap.count
                    variance = (squares / tap.count - mean.square()).clamp_min(0.0).cpu()
                    found[name] = found.get(name, 0) + variance / variance.mean().clamp_min(1e-30)
    for group in groups.free:
        reading = [slot for slot in group.slots if slot.role == "consumes"]
        if group.name in found:
            read = [slot.read(state[slot.key]).double().square().sum(1).cpu() for slot in reading for state in states]
            found[group.name] = found[group.name] * (torch.stack(read).sum(0) if read else 1.0)
        else:
            parts = [
                (slot.read(states[0][slot.key]).double() - slot.read(state[slot.key]).double()).square().sum(1).cpu()
                for slot in group.slots
                for state in states[1:]
                if state[slot.key].shape == states[0][slot.key].shape  # heads of other labels differ
            ]
            found[group.name] = torch.stack(parts).sum(0)
    return found


def _with_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    network = evaluation_copy(model)
    with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
        for key, tensor in network.state_dict().items():
            tensor.copy_(state[key])
    return network


def _spread_out(model: nn.Module, sources: Mapping[Axis, Tensor], room: Widened) -> nn.Module:
    """A network with new, silent channels; layers that `sources` do not fit, a head of other labels, as they are."""
    state = model.state_dict()
    network = evaluation_copy(model)
    resize(network, room.shapes(state))
    return _with_state(network, {key: spread(key, tensor, sources) for key, tensor in state.items()})
