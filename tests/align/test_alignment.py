"""Costs, solvers and couplings against references and brute force; planted permutations are recovered."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import noise_images, planted, transport_cost
from torch import nn

from depfuse.align import Coupling, align, apply_couplings
from depfuse.align.costs import activation_cost, mixed_cost, weight_cost
from depfuse.align.descent import Descent, SharedCosts
from depfuse.align.problem import MatchingProblem
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.transport import emd, sinkhorn
from depfuse.errors import RecipeError
from depfuse.groups import Slot, find_groups
from depfuse.groups.nesting import find_orbits
from depfuse.models import build_network
from depfuse.recipe import Recipe


def random_cost(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- optimal transport ----------------------------------------------------------------------------


@given(size=st.integers(2, 30), seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_assignment_costs_what_exact_transport_costs(size, seed):
    cost = random_cost(size, size, seed)
    uniform = np.full(size, 1 / size)
    assert transport_cost(cost, emd(cost)) == pytest.approx(ot.emd2(uniform, uniform, cost.numpy()), rel=1e-9)


@given(size=st.integers(1, 6), seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_assignment_is_the_best_of_all_permutations(size, seed):
    cost = random_cost(size, size, seed)
    costs = {
        order: sum(float(cost[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(size))
    }
    assert emd(cost).permutation.tolist() == list(min(costs, key=costs.get))


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_rectangular_transport_has_uniform_marginals(rows, columns, seed):
    matrix = emd(random_cost(rows, columns, seed)).matrix
    torch.testing.assert_close(matrix.sum(1), torch.full((rows,), 1 / rows, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(0), torch.full((columns,), 1 / columns, dtype=torch.float64))


def test_sinkhorn_is_potss_and_hardens_towards_the_assignment():
    cost = random_cost(12, 12, 3)
    scale = (cost - cost.mean()).abs().mean()
    uniform = np.full(12, 1 / 12)
    reference = ot.sinkhorn(uniform, uniform, (cost / scale).numpy(), 0.1, method="sinkhorn_log", numItermax=2000)
    soft = sinkhorn(cost, 0.1)
    torch.testing.assert_close(soft.plan, torch.from_numpy(reference), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(sinkhorn(3.0 * cost + 7.0, 0.1).plan, soft.plan, rtol=1e-6, atol=1e-9)
    hard = transport_cost(cost, emd(cost))
    costs = [transport_cost(cost, sinkhorn(cost, regularisation)) for regularisation in (1.0, 0.1, 0.01)]
    assert costs[0] > costs[1] > costs[2] >= hard - 1e-6
    assert costs[2] == pytest.approx(hard, rel=0.02)


def test_costs_that_say_nothing_or_are_no_numbers():
    equal = torch.ones(4, 4, dtype=torch.float64)
    assert sorted(emd(equal).permutation.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(sinkhorn(equal, 0.1).plan, equal / 16)
    equal[1, 2] = float("nan")
    for solve in (emd, lambda cost: sinkhorn(cost, 0.1)):
        with pytest.raises(RecipeError, match="not finite"):
            solve(equal)


# --- moments and costs ----------------------------------------------------------------------------


class Tapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.hidden, self.head = nn.Linear(5 * 64, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


@pytest.mark.parametrize("batch_size", [1, 7, 40])
@pytest.mark.parametrize("choice", ["after", "before"])
def test_streaming_costs_are_those_of_stored_activations(batch_size, choice):
    models = [Tapped().eval(), Tapped().eval()]
    for model in models:
        nn.init.constant_(model.bn.bias, 1.0)
        nn.init.constant_(model.hidden.bias, 5.0)
    groups = find_groups(models[0], torch.zeros(1, 1, 8, 8))
    loader = noise_images(40, batch_size=batch_size)
    (found,) = collect_moments(models, groups, loader, choice)
    images = torch.cat([batch for batch, _ in loader])
    for name, layer in (("conv", "bn"), ("hidden", "hidden")):
        stored = []
        for model in models:
            kept = {}
            module = getattr(model, layer)
            handle = module.register_forward_hook(lambda m, i, out, kept=kept: kept.update(out=out.detach()))
            model(images)
            handle.remove()
            values = kept["out"].relu() if choice == "after" else kept["out"]
            stored.append(values.movedim(1, 0).flatten(1).double().numpy())
        a, b = stored
        size = len(a)
        for distance, reference in (
            ("pearson", 1 - np.corrcoef(a, b)[:size, size:]),
            ("euclidean", ((a[:, None] - b[None]) ** 2).mean(-1)),
            ("cosine", 1 - (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))),
        ):
            cost = activation_cost(found[name], distance).numpy()
            np.testing.assert_allclose(cost, reference, rtol=2e-4, atol=2e-5)


def test_a_silent_channel_is_like_no_other():
    models = [Tapped().eval(), Tapped().eval()]
    with torch.no_grad():
        models[0].bn.weight[2], models[0].bn.bias[2] = 0.0, -1.0
    groups = find_groups(models[0], torch.zeros(1, 1, 8, 8))
    (found,) = collect_moments(models, groups, noise_images(20), "after")
    for distance in ("cosine", "pearson"):
        cost = activation_cost(found["conv"], distance)
        assert torch.isfinite(cost).all()
        torch.testing.assert_close(cost[2], torch.ones(5, dtype=torch.float64))


def test_weight_cost_is_the_summed_squared_distance():
    a, b = Tapped().state_dict(), Tapped().state_dict()
    (orbit,) = (o for o in find_orbits(find_groups(Tapped(), torch.zeros(1, 1, 8, 8)).groups) if o.name == "conv")
    (cost,) = weight_cost([part for part in orbit.parts if "running" not in part.key], a, b)
    for i in range(5):
        for j in range(5):
            expected = (a["conv.weight"][i] - b["conv.weight"][j]).square().sum()
            columns = a["hidden.weight"].reshape(6, 5, 64)[:, i] - b["hidden.weight"].reshape(6, 5, 64)[:, j]
            expected += columns.square().sum()
            expected += sum((a[key][i] - b[key][j]).square() for key in ("conv.bias", "bn.weight", "bn.bias"))
            assert float(cost[i, j]) == pytest.approx(float(expected), rel=1e-4)


def test_a_mixture_does_not_depend_on_units():
    activations, weights = random_cost(6, 6, 1), random_cost(6, 6, 2)
    one = mixed_cost(activations, weights, 0.3)
    torch.testing.assert_close(mixed_cost(1000 * activations, weights / 7, 0.3), one)
    torch.testing.assert_close(mixed_cost(activations, weights, 1.0), activations / activations.std(correction=0))


# --- couplings ------------------------------------------------------------------------------------


@given(size=st.integers(2, 6), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_permutation_and_its_plan_do_the_same(size, seed):
    generator = torch.Generator().manual_seed(seed)
    hard = Coupling(torch.randperm(size, generator=generator))
    soft = Coupling(plan=hard.matrix)
    tensor = torch.randn(4, 2 * size, generator=generator, dtype=torch.float64)
    for role in ("produces", "consumes"):
        slot = Slot("w", 1, torch.arange(2 * size).reshape(size, 2), role)
        torch.testing.assert_close(hard.apply(slot, tensor), soft.apply(slot, tensor))
        torch.testing.assert_close(hard.inverse().apply(slot, hard.apply(slot, tensor)), tensor)
    other = Coupling(torch.randperm(size, generator=generator))
    slot = Slot("w", 1, torch.arange(size)[:, None], "produces")
    twice = hard.apply(slot, other.apply(slot, tensor[:, :size]))
    torch.testing.assert_close(hard.compose(other).apply(slot, tensor[:, :size]), twice)
    torch.testing.assert_close(soft.compose(other).matrix, hard.compose(other).matrix)


def test_a_soft_coupling_conserves_what_flows_in():
    plan = Coupling(plan=sinkhorn(random_cost(5, 5, 0), 0.5).plan)
    weight = torch.randn(3, 5, dtype=torch.float64)
    consumed = plan.apply(Slot("w", 1, torch.arange(5)[:, None], "consumes"), weight)
    torch.testing.assert_close(consumed.sum(1), weight.sum(1))
    produced = plan.apply(Slot("w", 1, torch.arange(5)[:, None], "produces"), torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(produced, torch.ones(3, 5, dtype=torch.float64))


# --- whole networks -------------------------------------------------------------------------------


RECIPES = [
    {"criterion": "weights"},
    {"criterion": "weights", "solver": "coordinate-descent"},
    *({"distance": distance} for distance in ("best", "cosine", "pearson", "cosine-pearson", "scaled", "euclidean")),
    {"taps": "before"},
    {"taps": "both"},
    {"criterion": "mixture"},
    {"distance": "pearson", "solver": "sinkhorn", "regularisation": 0.05},
]


@pytest.mark.parametrize("settings_", RECIPES, ids=str)
@pytest.mark.parametrize("arch", ["digits_resnet", 'cifar_resnet20(shortcut="A", in_channels=1)'])
def test_planted_permutations_are_recovered(arch, settings_):
    models, groups, expected = planted(arch, (1, 8, 8))
    found = align(models, groups, Recipe(**settings_).align, noise_images(200, batch_size=50)).couplings[1]
    for group in groups.free:
        coupling = found[group.name]
        order = coupling.permutation if coupling.permutation is not None else coupling.plan.argmax(1)
        assert torch.equal(order, expected[group.name]), group.name


def test_descent_never_rises_and_ends_where_no_group_improves():
    models = [build_network("digits_resnet") for _ in range(2)]
    groups = find_groups(models[0], torch.zeros(1, 1, 8, 8))
    problem = MatchingProblem(groups, (models[0], models[1]), Recipe(criterion="weights").align)
    descent = Descent(SharedCosts(problem))
    totals = [problem.distance(descent.couplings)]
    moved = True
    while moved:
        moved = False
        for number in range(len(problem.roots)):
            moved |= descent.improve(number)
            totals.append(problem.distance(descent.couplings))
    assert totals[-1] < totals[0]
    assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(totals))
    state = apply_couplings(groups, descent.couplings, problem.source)
    for root in problem.roots:
        cost = weight_cost(problem.parts(root), problem.target, state)[0]
        assert transport_cost(cost, Coupling.identity(root.size)) <= transport_cost(cost, emd(cost)) * (1 + 1e-6)


def test_the_judge_chooses_and_without_it_the_nearest_weights():
    models = [build_network("digits_resnet(width=0.5)") for _ in range(2)]
    groups = find_groups(models[0], torch.zeros(1, 1, 8, 8))
    seen = []

    def judge(parent, couplings):
        seen.append(couplings)
        return -float(len(seen))

    recipe = Recipe(criterion="weights", restarts=6)
    chosen = align(models, groups, recipe.align, None, judge).couplings[1]
    assert len(seen) > 1
    assert chosen is seen[-1]
    target, source = (model.state_dict() for model in models)
    weights = [name for name, _ in models[0].named_parameters()]

    def distance(couplings):
        state = apply_couplings(groups, couplings, source)
        return sum(float((target[key] - state[key]).square().sum()) for key in weights)

    nearest = align(models, groups, recipe.align, None).couplings[1]
    assert distance(nearest) == pytest.approx(min(distance(candidate) for candidate in seen), rel=1e-6)


def test_contradictions_are_refused():
    models = [build_network("digits_resnet(width=0.5)") for _ in range(2)]
    groups = find_groups(models[0], torch.zeros(1, 1, 8, 8))
    with pytest.raises(RecipeError, match="needs calibration images"):
        align(models, groups, Recipe().align, None)
    with pytest.raises(RecipeError, match="coordinate-descent matches weights"):
        align(models, groups, Recipe(solver="coordinate-descent").align, noise_images(4))
