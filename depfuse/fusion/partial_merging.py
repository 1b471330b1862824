"""Merge partially: channels of the parents without a good counterpart stay side by side in the child.

Where the channels of two parents are merged, the child computes their average; where they stay unmerged, the channel of
each parent, from the child's channels that are that parent's inputs. The smallest example is a hidden layer with two
channels. Merged, the child has two; with the second pair unmerged, it has three: the average of the first pair, and
both of the second, whose outgoing weights count with their parents' shares. With all pairs unmerged, the child is the
ensemble (Stoica et al. 2024, ZipIt!, section 4).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.align.statistics.moments import collect_moments
from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DepfuseWarning, GroupError, RecipeError
from depfuse.fusion.arrangement import Arrangement, Owners, with_state
from depfuse.fusion.separation import SeparationProof
from depfuse.groups import ChannelGroup, ChannelGroups, Extent, find_groups, prove_groups
from depfuse.groups.mixing import Fault
from depfuse.groups.reasons import NOT_USED, SEPARATOR, TOUCHES_OUTPUT, explain
from depfuse.groups.widening import find_hosts, largest
from depfuse.merge import AlignedParents, Shares
from depfuse.networks.copying import fit_example
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating, modules_in_order
from depfuse.networks.stages import stages_of
from depfuse.recipe.sections import Merge

NOT_THE_ENSEMBLE = "with all channels kept apart the child would not be the ensemble of its parents' logits"
KEEP_LESS = "keep a smaller share (merge.keep_worst), and these are merged"
OUTPUT = "the output"
NOT_LINEAR = "it is not linear in what the last layer gives, or in a tensor that is averaged"


@dataclass(frozen=True, eq=False)
class PartialMerge:
    """Parents at the width of a child with unmerged channels.

    Attributes
    ----------
    models
        One network per parent with its function, in the child's order of channels; zero where a channel is another
        parent's alone.
    unmatched
        The same with nothing matched.
    template
        A network of the child's width, if one was given.
    groups
        Of the child's width, proved.
    owners
        The parent that alone has each of the child's channels.
    unmerged
        Group -> how many of its pairs of channels stay unmerged.
    merged
        Groups that were to stay unmerged but cannot, and are merged.
    unaffected
        Modules that run before any whose channels are merged: in the child they compute what they do in the parents.
    """

    models: list[nn.Module]
    unmatched: list[nn.Module]
    template: nn.Module | None
    groups: ChannelGroups
    owners: Owners
    unmerged: Mapping[str, int]
    merged: tuple[str, ...]
    unaffected: tuple[str, ...]


def merge_partially(
    parents: AlignedParents,
    settings: Merge,
    calibration: Loader | None = None,
    template: nn.Module | None = None,
    labels: LabelSets | None = None,
    *,
    seed: int = 0,
    extent: Extent = "full",
) -> PartialMerge:
    """Widen the parents by the channels that are to be kept apart, in the order of their couplings.

    Groups whose channels cannot stay side by side are merged, with a warning that says why. Where all channels of all
    groups are to stay, the child must be the ensemble of its parents, and is refused if it is not.

    Parameters
    ----------
    parents
        The parents, their couplings permutations, with an example input.
    settings
        How many channels are kept apart.
    calibration
        Unlabelled images by which pairs are compared; their weights are compared where None.
    labels, template
        As `average` takes them, the template at the parents' width.
    seed
        Of the proofs' random values.
    extent
        Of the proof of the child's groups, see `prove_groups`.

    Raises
    ------
    RecipeError
        A coupling is no permutation, there are fewer stages than asked for, or no group has room.
    GroupError
        All channels are to stay and the child would not be the ensemble, or no group could be proved.
    """
    if not parents.permuted:
        raise RecipeError("channels are kept apart by pairs, and these couplings are no permutations: choose emd")
    if parents.example is None:
        raise RecipeError("give an example input or calibration images: the network must be run once to be traced")
    models, groups, example = parents.networks, parents.groups, parents.example
    if found := next((key for key, tensor in models[0].state_dict().items() if tensor.is_complex()), None):
        raise RecipeError(f"channels cannot stand side by side beside complex weights ({found}): merge all of them")
    aligned = [with_state(model, state) for model, state in zip(models, parents.states(), strict=True)]
    counts, whole = _counts(aligned[0], groups, settings, example)
    host, why = find_hosts(models[0], groups, example)
    without = {name: why[name] for name, count in counts.items() if count and name not in host}
    if whole and without:
        raise GroupError(f"{NOT_THE_ENSEMBLE}: {explain(without)}; {KEEP_LESS}")
    if without and all(name in without for name, count in counts.items() if count):
        raise RecipeError(f"no channels can be kept apart, this network has no room for more: {explain(without)}")
    pairs_of = _worst_pairs(aligned, groups, {n: k for n, k in counts.items() if k and n not in without}, calibration)
    proof = SeparationProof(aligned, example, labels, template, Shares.create(parents.shares).network, seed=seed)

    def arranged(names: Iterable[str]) -> Arrangement:
        selected = {name: pairs for name, pairs in pairs_of.items() if name in set(names)}
        return Arrangement.create(groups, host, selected, len(models), models[0].state_dict())

    def fault(names: Sequence[str]) -> Fault | None:
        return proof.fault(arranged(names), whole=False)

    wrong = proof.fault(arranged(pairs_of), whole=whole)
    if wrong is not None:
        faults: dict[str, str] = {}
        unmerged = largest(list(pairs_of), lambda names: _without_fault(fault(names), names, faults))
        if whole:
            faults = faults or _averaged(groups, arranged(pairs_of)) or {OUTPUT: NOT_LINEAR}
            raise GroupError(f"{NOT_THE_ENSEMBLE}: {explain(faults)}; {KEEP_LESS}")
        if not unmerged or fault(unmerged) is not None:
            raise GroupError(f"no channels can be kept apart: {explain(faults or {OUTPUT: wrong.words})}")
        pairs_of = {name: pairs_of[name] for name in unmerged}
        without |= faults
    if without:
        sentence = f"channels that were to be kept apart are merged: {explain(without)}"
        warnings.warn(sentence, DepfuseWarning, stacklevel=3)
    arrangement = arranged(pairs_of)
    networks = [arrangement.widen(model, number) for number, model in enumerate(aligned)]
    return PartialMerge(
        networks,
        [arrangement.widen(model) for model in models],
        None if template is None else arrangement.widen(template),
        prove_groups(networks[0], find_groups(networks[0], example), example, seed=seed, proof=extent),
        arrangement.owners,
        {name: len(pairs) for name, pairs in pairs_of.items()},
        tuple(without),
        _unaffected(networks, arrangement, example),
    )


def _without_fault(fault: Fault | None, names: Sequence[str], faults: dict[str, str]) -> bool:
    """Tell whether there is no fault; record the fault of a single group."""
    if fault is not None and len(names) == 1:
        faults[names[0]] = fault.words
    return fault is None


def _averaged(groups: ChannelGroups, arrangement: Arrangement) -> dict[str, str]:
    """Map each group or layer that is averaged, though the output need not be linear in it, to the reason."""
    between = {
        group.name: group.fixed
        for group in groups
        if group.fixed is not None and {"consumes"} < {slot.role for slot in group.slots}
    }
    still = {
        key.rpartition(".")[0] or key: reason
        for key, reason in groups.fixed_tensors.items()
        if not {TOUCHES_OUTPUT, NOT_USED}.issuperset(reason.split(SEPARATOR))
    }
    partly = {
        key.rpartition(".")[0] or key: "some of its channels are in no group"
        for (key, _), owner in arrangement.owners.items()
        if bool((owner >= 0).any() and (owner < 0).any())
    }
    return {**partly, **between, **still}


def _unaffected(networks: Sequence[nn.Module], arrangement: Arrangement, example: Example) -> tuple[str, ...]:
    """List the modules that run before all those of which the child averages the parents' tensors."""
    first, *others = (network.state_dict() for network in networks)
    mixing = {
        key.rpartition(".")[0]
        for key, tensor in first.items()
        if tensor.is_floating_point()
        and not arrangement.owned(key)
        and not all(tensor.shape == state[key].shape and torch.equal(tensor, state[key]) for state in others)
    }
    inputs = fit_example(example, networks[0])
    with torch.no_grad(), evaluating(networks[0]):
        order = modules_in_order(networks[0], lambda: run_network(networks[0], inputs))
    leaves = [name for name in order if next(networks[0].get_submodule(name).children(), None) is None]
    before = next((place for place, name in enumerate(leaves) if name in mixing), len(leaves))
    # Bare parameters belong to modules that run other modules: where they lie cannot be told.
    return tuple(leaves[:before]) if mixing <= set(leaves) else ()


def _counts(model: nn.Module, groups: ChannelGroups, settings: Merge, example: Example) -> tuple[dict[str, int], bool]:
    """Count the channels of each free group that stay unmerged; tell whether these are all of the network."""
    stages, count = stages_of(model, example) if settings.keep_first or settings.keep_last else ({}, 0)
    whole = _whole_groups(stages, count, type(model).__name__, groups, settings)
    counts = {g.name: g.size if g.name in whole else round(settings.keep_worst * g.size) for g in groups.free}
    everything = settings.keep_worst == 1.0 or 0 < count <= settings.keep_first + settings.keep_last
    return counts, everything and all(counts[group.name] == group.size for group in groups.free)


def _worst_pairs(
    aligned: Sequence[nn.Module], groups: ChannelGroups, counts: Mapping[str, int], calibration: Loader | None
) -> dict[str, Tensor]:
    """Select the pairs (k,) int64 of each group that stay unmerged: those with the largest distance."""
    partly = [group for group in groups.free if 0 < counts.get(group.name, 0) < group.size]
    distances = _distances(aligned, groups, partly, calibration) if partly else {}
    chosen = {}
    for name, count in counts.items():
        if name in distances:
            worst = torch.argsort(distances[name], descending=True, stable=True)[:count]
            chosen[name] = worst.sort().values
        else:
            chosen[name] = torch.arange(count)
    return chosen


def _whole_groups(stages: Mapping[str, int], count: int, name: str, groups: ChannelGroups, settings: Merge) -> set[str]:
    """Find the groups that only layers of the first or last stages write to, as many stages as stay unmerged."""
    for option, asked in (("merge.keep_first", settings.keep_first), ("merge.keep_last", settings.keep_last)):
        if asked > count:
            raise RecipeError(f"{option} {asked} is more than the {count} stages of {name}")
    whole = set()
    for group in groups.free:
        writers = {slot.key.rpartition(".")[0] for slot in group.slots if slot.role == "produces"}
        writer_stages = [stages[name] for name in writers if name in stages]
        if writer_stages and (
            max(writer_stages) < settings.keep_first or min(writer_stages) >= count - settings.keep_last
        ):
            whole.add(group.name)
    return whole


def _distances(
    aligned: Sequence[nn.Module], groups: ChannelGroups, chosen: Sequence[ChannelGroup], calibration: Loader | None
) -> dict[str, Tensor]:
    """Measure the distance (n,) of each matched pair of channels of some groups, which have no blocks.

    With images, the variance of the difference of the pair's activations, relative to the others at a tap and summed
    over taps and parents, times the squared weights that read the pair. Without, the squared distance of its weights.
    """
    distances: dict[str, Tensor] = {}
    names = {group.name for group in chosen}
    states = [model.state_dict() for model in aligned]
    if calibration is not None:
        for moments in collect_moments(aligned, groups, calibration, "after"):
            for name, taps in moments.items():
                for tap in taps if name in names else ():
                    squares = tap.target_square + tap.source_square - 2 * tap.product.diagonal()
                    mean = (tap.target_sum - tap.source_sum) / tap.count
                    variance = (squares / tap.count - mean.square()).clamp_min(0.0).cpu()
                    distances[name] = distances.get(name, 0) + variance / variance.mean().clamp_min(1e-30)
    for group in chosen:
        reading = [slot for slot in group.slots if slot.role == "consumes"]
        if group.name in distances:
            read = [slot.read(state[slot.key]).double().square().sum(1).cpu() for slot in reading for state in states]
            distances[group.name] = distances[group.name] * (torch.stack(read).sum(0) if read else 1.0)
        else:
            parts = [
                (slot.read(states[0][slot.key]).double() - slot.read(state[slot.key]).double()).square().sum(1).cpu()
                for slot in group.slots
                for state in states[1:]
                if state[slot.key].shape == states[0][slot.key].shape  # heads of other labels differ
            ]
            distances[group.name] = torch.stack(parts).sum(0)
    return distances
