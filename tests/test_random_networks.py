"""Random networks: the groups of each are proved, and nothing is fixed without need."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_networks import IMAGE, Drawn, random_networks

from depfuse.groups import ChannelGroup, find_groups, not_followed, prove_groups
from depfuse.groups.generic import GenericNetwork
from depfuse.groups.invariance import NO_EFFECT
from depfuse.groups.reasons import NOT_USED

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
BOUNDED = settings(deadline=None, derandomize=True, print_blob=True, suppress_health_check=SLOW)


def has_effect(network: Drawn, example: torch.Tensor, group: ChannelGroup) -> bool:
    """Whether other values in the group's tensors change the output."""
    generic = GenericNetwork(network, example, (), seed=0)
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


@settings(BOUNDED, max_examples=50)
@given(random_networks())
def test_random_networks_are_proved(network):
    check_proof(network)


@pytest.mark.slow
@settings(BOUNDED, max_examples=1000)
@given(random_networks())
def test_a_thousand_random_networks_are_proved(network):
    check_proof(network)
