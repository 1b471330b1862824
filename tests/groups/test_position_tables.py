"""Distinct labels, and tables of positions."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

from depfuse import find_groups
from depfuse.errors import ArchitectureError
from depfuse.groups.labels.distinct import distinct, distinct_pairs
from depfuse.groups.taps import position_tables


@pytest.mark.parametrize("size", [0, 1, 2, 50, 5000])
def test_distinct_values_and_pairs_are_numpys(size: int) -> None:
    values = np.random.default_rng(size).integers(0, max(size // 3, 1), (size, 2))
    assert np.array_equal(distinct(values), np.unique(values))
    assert np.array_equal(distinct_pairs(values), np.unique(values, axis=0).reshape(-1, 2))


def test_positions_are_tabled_by_kind_and_rank() -> None:
    kinds = np.array([7, 2, 7, 2, 7, 7, 9, 9, 4])
    ranks = np.array([1, 0, 0, 1, 1, 0, 0, 0, 0])
    tables = dict(position_tables(kinds, ranks, np.arange(9), 2))
    assert list(tables) == [2, 4, 7, 9]
    assert tables[4] is None  # a rank without a position
    assert tables[9] is None
    assert tables[2] is not None
    assert tables[2].tolist() == [[1], [3]]
    assert tables[7] is not None
    assert tables[7].tolist() == [[2, 5], [0, 4]]
    sizes = np.full(10, 2)
    sizes[9] = 1
    by_kind = dict(position_tables(kinds, ranks, np.arange(9), sizes))
    assert by_kind[9] is not None
    assert by_kind[9].tolist() == [[6, 7]]
    uneven = dict(position_tables(np.zeros(3, np.int64), np.array([0, 1, 1]), np.arange(3), 2))
    assert uneven == {0: None}
    assert not list(position_tables(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), 2))


@pytest.mark.parametrize("enabled", [True, False])
def test_finding_groups_leaves_garbage_collection_as_it_was(enabled: bool) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        find_groups(network, torch.zeros(1, 3))
        assert gc.isenabled() == enabled
        with pytest.raises(ArchitectureError):
            find_groups(network, torch.zeros(1, 5))
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
