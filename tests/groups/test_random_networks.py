"""Random networks: the groups of each are proved, and nothing is fixed without need."""

from __future__ import annotations

import copy
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from random_networks import IMAGE, Drawn, random_networks
from torch.utils._pytree import tree_leaves

from depfuse.align import Coupling
from depfuse.errors import GroupError, RecipeError
from depfuse.fusion.partial_merging import merge_partially
from depfuse.groups import ChannelGroup, find_groups, not_followed, prove_groups
from depfuse.groups.generic_values import GenericNetwork
from depfuse.groups.proof import NO_EFFECT
from depfuse.groups.reasons import NOT_USED
from depfuse.merge import AlignedParents, average
from depfuse.recipe.sections import Merge

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
# How many networks each slow proof draws.
MANY = int(os.environ.get("DEPFUSE_RANDOM_NETWORKS", "50"))
BOUNDED = settings(deadline=None, derandomize=True, print_blob=True, suppress_health_check=SLOW)


def has_effect(network: Drawn, example: torch.Tensor, group: ChannelGroup) -> bool:
    """Whether other values in the group's tensors change the output."""
    generic = GenericNetwork(network, example, None, seed=0)
    before = generic.run()
    for slot in group.slots:
        entries = slot.read(generic.state[slot.key])
        changed = entries + torch.rand(entries.shape, dtype=entries.dtype)
        generic.state[slot.key] = slot.write(generic.state[slot.key], changed)
    pairs = zip(before, generic.run(), strict=True)
    return any(float((a - b).abs().max()) > 1e-9 * float(a.abs().max()) for a, b in pairs)


def check_proof(network: Drawn) -> None:
    """What was found is proved as it is; what the proof could not see has no effect."""
    example = torch.randn(IMAGE)
    found = find_groups(network, example)
    assert not not_followed(found)
    proved = prove_groups(network, found, example)
    assert proved.proof_error is not None
    assert proved.proof_error <= 1e-9
    for name, reason in proved.fixed.items():
        if name not in found.fixed:
            assert reason in (NO_EFFECT, NOT_USED), f"{name}: {reason}"
            assert not has_effect(network, example, proved[name]), f"{name}: {reason}"


@settings(BOUNDED, max_examples=30)
@given(random_networks())
def test_random_networks_are_proved(network):
    check_proof(network)


@pytest.mark.slow
@settings(BOUNDED, max_examples=MANY)
@given(random_networks())
def test_many_random_networks_are_proved(network):
    check_proof(network)


def another(network: Drawn) -> Drawn:
    """The same network with other parameters and statistics, in float64."""
    generator = torch.Generator().manual_seed(1)
    found = copy.deepcopy(network).double()
    with torch.no_grad():
        for tensor in (*found.parameters(), *(b for b in found.buffers() if b.is_floating_point())):
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.dim() < 2:
                tensor.copy_(tensor.abs() * (0.5 + noise) + 0.1)
            else:
                tensor.copy_((noise - 0.5) * 3 * tensor.std(correction=0).clamp_min(0.1))
    return found


def check_side_by_side(network: Drawn, share: float) -> None:
    """With all channels apart the child is its parents' ensemble, or is refused; with some it has finite outputs."""
    parents = [network.double(), another(network)]
    image = torch.randn(IMAGE, dtype=torch.float64)
    shares = (0.3, 0.7)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = prove_groups(network, find_groups(network, image), image)
            identity = {group.name: Coupling.identity(group.size) for group in groups.free}
            aligned = AlignedParents(parents, groups, [identity] * 2, shares, image[:1])
            partial = merge_partially(aligned, Merge(keep_worst=share))
    except (GroupError, RecipeError):
        event("refused")
        return
    event("kept apart")
    child = average(partial.models, partial.groups, [{}, {}], shares, owners=partial.owners)
    with torch.no_grad():
        outputs, *each = (tree_leaves(model(image)) for model in (child, *parents))
    for output, *logits in zip(outputs, *each, strict=True):
        assert bool(output.isfinite().all())
        mean = sum(own * values for own, values in zip(shares, logits, strict=True))
        assert share < 1.0 or float((output - mean).abs().max()) <= 1e-4 * float(mean.abs().max())


@settings(BOUNDED, max_examples=25)
@given(random_networks(mixing=True))
def test_children_with_all_channels_apart_are_ensembles_or_refused(network):
    check_side_by_side(network, 1.0)


@pytest.mark.slow
@settings(BOUNDED, max_examples=MANY)
@given(random_networks(mixing=True))
def test_many_children_with_all_channels_apart_are_ensembles_or_refused(network):
    check_side_by_side(network, 1.0)


@pytest.mark.slow
@settings(BOUNDED, max_examples=max(1, MANY // 5))
@given(random_networks(mixing=True))
def test_a_fifth_as_many_children_with_half_of_the_channels_apart_have_outputs_or_are_refused(network):
    check_side_by_side(network, 0.5)
