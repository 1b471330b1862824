"""A child is compared with everything that could be kept instead, from Python as on the command line."""

from __future__ import annotations

import pytest
import torch
from digits_parents import small_parents

import depfuse
from depfuse import Recipe
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.evaluate import evaluate, evaluate_ensemble
from depfuse.fusion.comparison import heads_refitted, naive_child
from depfuse.fusion.contenders import advise_on
from depfuse.fusion.verdict import verdict
from depfuse.teach.distil import Distillation


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="module")
def test_images(data: DataSet) -> Loader:
    return Loader(data.test, data.preprocessing, batch_size=500)


def test_scores_are_those_of_the_networks_themselves(data: DataSet, test_images: Loader) -> None:
    parents = small_parents()
    result = depfuse.fuse(parents, Recipe(refit="none"), calibration_loader(data, 120))
    steps: list[str] = []
    found = depfuse.compare(result, test_images, progress=steps.append)
    assert steps == ["heads"]
    assert found.child == evaluate(result.child, test_images)
    assert list(found.parents) == [evaluate(parent, test_images) for parent in parents]
    assert found.ensemble == evaluate_ensemble(parents, test_images)
    assert found.naive == evaluate(naive_child(result, (0.5, 0.5), "none"), test_images)
    assert found.renewed == evaluate(naive_child(result, (0.5, 0.5), "reset"), test_images)
    assert list(found.heads) == [evaluate(head, test_images) for head in heads_refitted(result)]
    assert found.chance == pytest.approx(float(torch.bincount(data.test.labels).max()) / len(data.test.labels))
    assert found.baseline is None
    assert found.teacher is None
    advice = advise_on(result, found)
    assert advice.child.value == found.child.accuracy
    assert [rival.what for rival in advice.rivals].count("parent") == 2
    assert verdict(advice, None)


def test_a_child_that_was_trained_is_compared_with_a_parent_trained_as_long(data: DataSet, test_images: Loader) -> None:
    training = Distillation(data)
    recipe = Recipe(refit="none", distil=1, joint_head="none", parents_renorm="none")
    result = depfuse.fuse(small_parents(), recipe, calibration_loader(data, 120), training=training)
    found = depfuse.compare(result, test_images, training=training)
    assert found.baseline is not None
    assert found.baseline.scores == evaluate(found.baseline.network, test_images)
    head = heads_refitted(result)[found.baseline.parent]
    assert any(
        not torch.equal(*pair) for pair in zip(head.parameters(), found.baseline.network.parameters(), strict=True)
    )
