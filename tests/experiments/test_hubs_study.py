"""The study of hubs: what its parents see, and that a hub's own loader gives depfuse's child."""

from __future__ import annotations

import argparse

import pandas as pd
import pytest
import torch

from experiments.lib.hubs.pictures import pictures
from experiments.studies import hubs as study


def test_every_picture_is_one_parent_s_and_each_knows_mostly_five_digits() -> None:
    labels = pictures(slice(1000), torch.Generator().manual_seed(0))[1]
    one, two = (study._own(labels, number, torch.Generator().manual_seed(0)) for number in (0, 1))
    assert torch.equal(one, ~two)
    assert 0.9 < (labels[one] < 5).float().mean() < 1
    assert 0.9 < (labels[two] >= 5).float().mean() < 1


def test_pictures_of_a_seed_are_the_same() -> None:
    first, again, other = (pictures(slice(8), torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= first.min() < first.max() <= 1


def test_a_table_has_the_worst_difference_and_the_mean_of_all_seeds() -> None:
    scores = dict.fromkeys(study.ROWS, 0.5)
    rows = pd.DataFrame(
        [
            {"hub": "a", "seed": seed, **scores, "child": child, "difference": far, "seconds": 2.0, "refused": ""}
            for seed, child, far in ((0, 0.9, 1e-6), (1, 0.8, 3e-6))
        ]
    )
    shown = study.show(rows, argparse.Namespace())
    assert "| a | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | 85.0 ± 5.0 | 3.0e-06 | 2 |" in shown


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["timm, test_resnet", "Lightning"])
def test_a_hub_s_own_loader_gives_depfuse_s_child(hub: str) -> None:
    pytest.importorskip(hub.split(",")[0].lower())
    found = study.measure({"hub": hub, "seed": 0})
    assert found["difference"] < 1e-4
    assert found["child"] > max(found["parent 1"], found["parent 2"], found["average"])
