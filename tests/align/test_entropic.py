"""Entropic transport by kernels is the one that POT computes in the log domain."""

from __future__ import annotations

import numpy as np
import ot
import pytest

from depfuse.align.entropic import entropic


def cost(targets: int, sources: int, spread: float = 1.0) -> np.ndarray:
    return spread * np.random.default_rng(0).random((targets, sources))


def in_log_domain(values: np.ndarray, regularisation: float, steps: int) -> np.ndarray:
    masses = (np.full(size, 1.0 / size) for size in values.shape)
    return ot.sinkhorn(*masses, values, regularisation, method="sinkhorn_log", numItermax=steps, warn=False)


@pytest.mark.parametrize("shape", [(40, 40), (30, 50), (1, 4)])
@pytest.mark.parametrize("regularisation", [1.0, 0.05, 0.002])
@pytest.mark.parametrize("steps", [1, 8, 300])
def test_plans_are_those_of_pot(shape: tuple[int, int], regularisation: float, steps: int) -> None:
    values = cost(*shape)
    expected = in_log_domain(values, regularisation, steps)
    assert np.allclose(entropic(values, regularisation, steps), expected, rtol=1e-6, atol=1e-12)


def test_costs_too_far_apart_for_a_kernel_are_moved_in_the_log_domain() -> None:
    values = cost(20, 20, spread=1e6)
    plan = entropic(values, 0.5, 200)
    assert np.isfinite(plan).all()
    assert np.allclose(plan.sum(1), 1 / 20, rtol=1e-9)
    assert np.allclose(plan, in_log_domain(values, 0.5, 200), atol=1e-6)


def test_converged_plans_have_uniform_rows_and_columns() -> None:
    plan = entropic(cost(60, 90), 0.1, 5000)
    assert np.allclose(plan.sum(1) * 60, 1.0, atol=1e-7)
    assert np.allclose(plan.sum(0) * 90, 1.0, atol=1e-7)


@pytest.mark.parametrize("regularisation", [0.002, 0.05])  # a few entries in a hundred count, or nearly all
@pytest.mark.parametrize("shape", [(300, 300), (280, 300)])
def test_plans_of_lighter_kernels_are_those_of_full_ones(shape: tuple[int, int], regularisation: float) -> None:
    values = cost(*shape)
    plan = entropic(values, regularisation, 400)
    full = entropic(values, regularisation, 400, light_from=1000)
    assert not np.array_equal(plan, full)
    assert np.abs(plan - full).max() < 1e-5 * full.max()
    assert np.allclose(plan.sum(1) * shape[0], 1.0, rtol=1e-12)


def test_a_lighter_kernel_that_nears_its_end_is_made_exact() -> None:
    plan = entropic(cost(300, 300), 0.2, 5000)
    assert np.linalg.norm(plan.sum(0) - 1 / 300) < 1e-9
