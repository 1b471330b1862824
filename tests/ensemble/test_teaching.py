"""What the ensemble teaches: its logits, and the divergence from them with its derivatives."""

from __future__ import annotations

import pytest
import torch

from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import TEMPERATURE, ensemble_logits
from tests.divergences import curvature_product, divergence, sample, slope


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = 4 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    return found[0], found[1]


@pytest.mark.parametrize("temperature", [1.0, 2.0, TEMPERATURE])
def test_the_ensemble_is_the_mean_of_softened_probabilities(logits, temperature):
    first, second = logits
    joint = ensemble_logits([first, second], (0.3, 0.7), None, temperature)
    mean = 0.3 * (first / temperature).softmax(1) + 0.7 * (second / temperature).softmax(1)
    torch.testing.assert_close((joint / temperature).softmax(1), mean)
    if temperature == TEMPERATURE:
        assert torch.equal(ensemble_logits([first, second], (0.3, 0.7)), joint)
    torch.testing.assert_close(ensemble_logits([first, second], (1.0, 0.0)).softmax(1), first.softmax(1))


def test_one_head_together_is_the_mean_of_logits(logits):
    first, second = logits
    torch.testing.assert_close(ensemble_logits([first, second], (0.3, 0.7), joint=True), 0.3 * first + 0.7 * second)


def test_other_labels_stand_side_by_side(logits):
    first, second = logits
    sets = LabelSets.create([range(7), range(7, 14)])
    assert torch.equal(ensemble_logits([first, second], (0.5, 0.5), sets), torch.cat([first, second], 1))


def test_slope_and_curvature_are_the_divergences_derivatives(logits):
    first, second = logits
    found = first.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(divergence(found, second), found)
    torch.testing.assert_close(slope(first, second), gradient)
    (sharper,) = torch.autograd.grad(divergence(found, second, 1.0), found)
    torch.testing.assert_close(slope(first, second, 1.0), sharper)
    change = torch.ones_like(first).cumsum(1)
    _, bent = torch.autograd.functional.hvp(lambda z: divergence(z, second), first, change)
    torch.testing.assert_close(curvature_product(change, first), bent)
    assert float(divergence(first, first)) == pytest.approx(0.0, abs=1e-12)


def test_drawn_vectors_have_the_curvature_as_covariance(logits):
    one = logits[0][:1].expand(200_000, -1)
    vectors = sample(one, torch.Generator().manual_seed(0))
    covariance = vectors.T @ vectors / len(vectors)
    torch.testing.assert_close(covariance, curvature_product(torch.eye(7, dtype=one.dtype), one[:7]), atol=5e-3, rtol=0)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(7, dtype=one.dtype), atol=5e-3, rtol=0)
    vectors = sample(one, torch.Generator().manual_seed(0), 1.0)
    p = one[0].softmax(0)
    torch.testing.assert_close(vectors.T @ vectors / len(vectors), p.diag() - p.outer(p), atol=5e-3, rtol=0)
