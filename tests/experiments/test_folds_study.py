"""The study of folds: what a fold is trained on, how sizes of maps are weighed, and what is timed and scored."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from experiments.lib.folds.networks import UNet
from experiments.lib.folds.scenes import Scenes
from experiments.lib.folds.training import FOLDS, Plan, fold
from experiments.studies import fold_rates
from experiments.studies import folds as study


def squares(count: int, generator: torch.Generator, test: bool) -> tuple[Tensor, Tensor]:
    """Draw a bright place in noise."""
    images = torch.randn(count, 1, 8, 8, generator=generator)
    labels = (images[:, 0] > 1).long()
    return images, labels


SCENES = Scenes("squares", 1, 2, 2, squares)
PLAN = Plan(scenes=20, tests=10, epochs=2, batch_size=4, width=2)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_maps_of_every_size_in_training_and_one_in_evaluation(dimensions: int) -> None:
    network = UNet(1, 3, dimensions, "instance", width=2)
    images = torch.randn(2, 1, *[8] * dimensions)
    assert [tuple(own.shape) for own in network.train()(images)] == [
        (2, 3, *[8] * dimensions), (2, 3, *[4] * dimensions),
    ]  # fmt: skip
    assert network.eval()(images).shape == (2, 3, *[8] * dimensions)


def test_a_fold_does_not_see_its_own_fifth() -> None:
    images, labels = squares(20, torch.Generator().manual_seed(0), False)
    own = torch.arange(20) % FOLDS == 1
    changed = torch.where(own[:, None, None], 1 - labels, labels)
    first = fold(SCENES, "batch", images, labels, 1, 0, PLAN).state_dict()
    again = fold(SCENES, "batch", images, changed, 1, 0, PLAN).state_dict()
    other = fold(SCENES, "batch", images, changed, 2, 0, PLAN).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.slow
def test_a_network_of_every_row_is_made_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = study.Task(SCENES, PLAN, {"batch": 0.05}, distil=1)
    for network in ("fold 3", "ensemble", "average, reset", "refitted", "distilled"):
        found = study.scored(task, "batch", network, 0)
        assert 0 <= found["dice"] <= 1
        assert found["milliseconds"] > 0
    assert len(list((tmp_path / "depfuse" / "folds").glob("*.safetensors"))) == FOLDS


def test_children_that_stayed_the_refitted_ones_are_counted() -> None:
    rows = [{"refitted": 0.5, "distilled": 0.5}, {"refitted": 0.5, "distilled": 0.6}, {"refitted": 0.5}]
    assert study._discarded(pd.DataFrame(rows)) == "1 of 2"


def test_a_rate_is_chosen_on_scenes_that_the_study_does_not_draw() -> None:
    assert fold_rates.SEED not in study.SEEDS
    rows = [
        {"task": "volumes", "norm": "batch", "rate": str(rate), "fold": fold, "dice": dice}
        for rate, values in zip(fold_rates.RATES, ((0.5, 0.6), (0.9, 0.8), (0.9, 0.4)), strict=True)
        for fold, dice in enumerate(values)
    ]
    shown = fold_rates.show(pd.DataFrame(rows), fold_rates.MEASUREMENT.parser().parse_args([]))
    assert "| batch | 50.0, 60.0 | 90.0, 80.0 | 90.0, 40.0 | 0.1 |" in shown


def test_only_seeds_with_all_folds_count() -> None:
    rows = pd.DataFrame(
        [
            {"seed": seed, "network": f"fold {number}", "dice": 0.1 * number}
            for seed, count in ((0, 5), (1, 4))
            for number in range(count)
        ]
    )
    table = study.by_seed(rows, "dice")
    assert list(table.index) == [0]
    assert table.loc[0, "mean fold"] == pytest.approx(0.2)
    assert table.loc[0, "best fold"] == pytest.approx(0.4)
