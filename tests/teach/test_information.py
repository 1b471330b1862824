"""Regularised information maximisation: its optimum, what it keeps, and what it wins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from depfuse.teach.information_maximisation import KEPT, PENALTY, TEMPERATURE, agreement, maximise, two_sets


def drawn(seed: int, count: int = 60, width: int = 4, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64) * torch.arange(1, width + 1)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return features, weight, torch.randn(classes, generator=generator, dtype=torch.float64)


def objective(x: np.ndarray, start: np.ndarray, now: np.ndarray, moved: np.ndarray, labels: np.ndarray | None) -> float:
    """The sum as the docstring gives it, from scores."""
    p, before = np.exp(log_softmax(now, 1)), np.exp(log_softmax(start, 1))
    prior = np.exp(log_softmax(TEMPERATURE * start, 1)).mean(0)
    loss = -(p * np.log(p)).sum(1).mean() + (p.mean(0) * np.log(p.mean(0) / prior)).sum()
    loss += KEPT * -(before * np.log(p)).sum(1).mean() + 0.5 * PENALTY * (moved**2).sum()
    if labels is not None:
        loss -= np.log(p[np.arange(len(labels)), labels]).mean()
    return float(loss)


@pytest.mark.parametrize("labelled", [0, 20])
def test_it_is_the_optimum_that_scipy_finds(labelled):
    features, weight, bias = drawn(0)
    labels = torch.randint(0, 3, (labelled,), generator=torch.Generator().manual_seed(1)) if labelled else None
    found = maximise(features, weight, bias, labels)
    x = features.numpy()
    deviation = features.std(0).numpy()
    start = (x @ weight.numpy().T + bias.numpy()) / TEMPERATURE
    y = None if labels is None else labels.numpy()

    def loss(flat: np.ndarray) -> float:
        moved, shift = flat[:12].reshape(3, 4), flat[12:]
        return objective(x, start, start + (x - x.mean(0)) / deviation @ moved.T + shift, moved, y)

    best = minimize(loss, np.zeros(15), method="BFGS", options={"gtol": 1e-7})
    scores = x @ found[0].numpy().T + found[1].numpy()
    moved = (found[0].numpy() - weight.numpy() / TEMPERATURE) * deviation
    assert objective(x, start, scores, moved, y) == pytest.approx(best.fun, abs=2e-3)
    assert objective(x, start, scores, moved, y) < loss(np.zeros(15)) - 0.01


def test_features_are_overwritten_only_where_that_is_asked_for():
    features, weight, bias = drawn(0)
    features = features.double()
    before = features.clone()
    found = maximise(features, weight, bias)
    assert torch.equal(features, before)
    assert all(map(torch.equal, maximise(features, weight, bias, overwrite=True), found))
    torch.testing.assert_close(features, (before - before.mean(0)) / before.std(0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
def test_the_order_of_the_classes_does_not_matter(seed, order):
    features, weight, bias = drawn(seed)
    one = maximise(features, weight, bias)
    other = maximise(features, weight[order], bias[order])
    assert torch.allclose(
        (features @ one[0].T + one[1])[:, order].softmax(1), (features @ other[0].T + other[1]).softmax(1), atol=1e-2
    )


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.2)])
def test_two_groups_are_told_apart_whatever_their_sizes(shares):
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(600, generator=generator) > shares[0]).long()
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    features = centres[truth] + torch.randn(600, 2, generator=generator)
    weight, bias = torch.tensor([[-0.6, 0.5], [0.6, -0.5]]), torch.zeros(2)
    before = ((features @ weight.T + bias).argmax(1) == truth).float().mean()
    found = maximise(features, weight, bias)
    named = (features @ found[0].T + found[1]).argmax(1)
    after = (named == truth).float().mean()
    assert after > before + 0.02
    assert float(named.float().mean()) == pytest.approx(shares[1], abs=0.05)


def test_constant_features_and_absent_classes_are_no_trouble():
    features, weight, bias = drawn(2)
    features[:, 0] = 1.0
    bias = torch.tensor([0.0, 0.0, -1e4], dtype=torch.float64)
    found = maximise(features, weight, bias)
    assert all(tensor.isfinite().all() for tensor in found)
    assert not ((features @ found[0].T + found[1]).argmax(1) == 2).any()


def test_heads_found_on_halves_agree_where_the_images_have_groups_and_not_where_they_have_none():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 20, generator=generator)
    truth = torch.randint(0, 4, (400,), generator=generator)
    groups = noise + 6 * torch.eye(20)[truth]
    weight, bias = 0.05 * torch.randn(4, 20, generator=generator), torch.zeros(4)

    def alike(features: torch.Tensor, start: torch.Tensor) -> float:
        sets, standardised = two_sets(features.double(), 4), features.double()
        found = maximise(standardised, start, bias, overwrite=True)
        return agreement(sets, (start, bias), standardised, found)

    assert alike(groups, weight + 0.2 * torch.eye(20)[:4]) > 0.95
    assert alike(noise, weight) < 0.6


def test_heads_of_two_sets_name_all_images_by_their_own_features():
    features, bias = 3.0 + 2.0 * torch.randn(300, 8, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    weight = torch.randn(3, 8, dtype=torch.float64)
    heads = [maximise(own, weight, bias) for own in two_sets(features, 3)]
    named = [(features @ head.weight.T + head.bias).argmax(1) for head in heads]
    sets, standardised = two_sets(features, 3), features.clone()
    found = maximise(standardised, weight, bias, overwrite=True)
    expected = float((named[0] == named[1]).double().mean())
    assert 0.3 < expected < 1.0
    assert agreement(sets, (weight, bias), standardised, found) == expected
