"""Shares that soft couplings leave: what a user set is not changed without a word."""

from __future__ import annotations

import pytest
import torch

from depfuse import Recipe, find_groups, fuse
from depfuse.align.coupling import Coupling
from depfuse.merge import effective_shares
from depfuse.report import FusionReport, SharesSummary, decisions
from tests.merge.test_shares import EXAMPLE, images, network

SOFT = {"solver": "sinkhorn", "regularisation": 0.5, "distance": "pearson", "refit": "none"}


def parents():
    return [network(0), network(1)]


def test_permutations_leave_the_shares_as_they_are():
    result = fuse(parents(), Recipe(refit="none", weights=(0.3, 0.7)), images())
    assert result.effective_shares is None
    assert "soft couplings" not in repr(result)


def test_maps_that_the_next_layer_undoes_leave_the_shares_as_they_are():
    result = fuse(parents(), Recipe(refit="none", solver="cca"), images())
    assert any(coupling.maps is not None for coupling in result.couplings[1].values())
    assert result.effective_shares is None


def test_soft_couplings_leave_less_of_the_one_they_move():
    result = fuse(parents(), Recipe(**SOFT), images())
    first, second = result.effective_shares
    assert first + second == pytest.approx(1)
    assert second < 0.49
    assert f"soft couplings leave {first:.2f}, {second:.2f}" in repr(result)


def test_a_coupling_that_averages_all_channels_leaves_what_their_mean_has():
    parent = network(0)
    groups = find_groups(parent, EXAMPLE)
    group = groups.free[0]
    even = Coupling(plan=torch.full((group.size, group.size), 1 / group.size**2, dtype=torch.float64))
    share = effective_shares([parent, parent], groups, [{}, {group.name: even}], (0.5, 0.5))[1]
    state, ratios = parent.state_dict(), []
    for key, tensor in state.items():
        if tensor.dim() < 2:
            continue
        moved = tensor
        for slot in group.slots:
            if slot.key == key:
                moved = even.apply(slot, moved)
        ratios.append(float(moved.norm() / tensor.norm()))
    ratio = sum(ratios) / len(ratios)
    assert ratio < 0.99
    assert share == pytest.approx(ratio / (1 + ratio))


def test_the_command_says_which_weights_would_leave_the_shares():
    report = FusionReport.model_construct(
        refit_reason="refit none", mirroring=None, shares=SharesSummary(network=[0.5, 0.5], effective=[0.6, 0.4])
    )
    first, second = decisions(report)
    assert first == "Refit none."
    assert "of the shares 0.50,0.50 the child's kernels have 0.60,0.40" in second
    assert "`merge.weights=0.40,0.60` would leave 0.50,0.50" in second
