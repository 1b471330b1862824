"""Solvers of whole networks against pygmtools, SciPy and brute force; planted permutations; what they refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pygmtools
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import noise_images, planted
from scipy.optimize import quadratic_assignment
from torch import nn

from depfuse.align import Coupling, align, apply_couplings
from depfuse.align.affinity import RANK, Affinity, _Exact, _LowRank, inner, seconds_of_building
from depfuse.align.costs import weight_cost
from depfuse.align.descent import Descent, SharedCosts
from depfuse.align.edges import Edges
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers import load_solver
from depfuse.align.solvers.coordinate_descent import from_invariants, swept, with_invariants
from depfuse.align.solvers.frank_wolfe import WeightSimilarity, frank_wolfe
from depfuse.align.solvers.fused_gromov import fused
from depfuse.align.solvers.ipfp import fixed_point
from depfuse.align.solvers.reweighted_random_walk import walk
from depfuse.align.solvers.rounding import assign
from depfuse.align.solvers.sinkhorn_implicit import Sinkhorn
from depfuse.align.solvers.spectral import principal
from depfuse.align.solvers.start import as_candidates
from depfuse.errors import DataError, DepfuseWarning, RecipeError
from depfuse.groups import find_groups, random_permutations
from depfuse.models import build_network
from depfuse.networks.stopwatch import Stopwatch
from depfuse.recipe import Recipe
from depfuse.recipe.solvers import SOLVERS, ReweightedRandomWalk, facts, solver_settings


class Hidden(nn.Module):
    """Two hidden layers: three inputs, `sizes` channels, two outputs."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, sizes[0]), nn.Linear(sizes[0], sizes[1], bias=False)
        self.head = nn.Linear(sizes[1], 2, bias=False)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def solved(problem: MatchingProblem, name: str) -> list[Solution]:
    """The solutions of a solver with its usual settings."""
    return load_solver(name).solve(problem.by(solver_settings(name)))


def hidden_problem(sizes=(4, 5), **settings_) -> MatchingProblem:
    networks = (Hidden(sizes), Hidden(sizes))
    groups = find_groups(networks[0], torch.zeros(1, 3))
    return MatchingProblem(groups, networks, Recipe(**{"criterion": "weights", **settings_}).align)


def loop(size: int, seed: int = 0) -> Edges:
    """Edges of one group to itself, without loops at a channel."""
    generator = torch.Generator().manual_seed(seed)
    target, source = (torch.rand(size, size, 1, generator=generator) for _ in range(2))
    return Edges("w", ("g", "g"), ("produces", "consumes"), target, source)


# --- the operator -----------------------------------------------------------------------------------


def written_out(affinity: Affinity) -> np.ndarray:
    """The matrix of an operator, column by column."""
    columns = []
    for name, size in affinity.sizes.items():
        for entry in range(size * size):
            weights = {other: torch.zeros_like(value) for other, value in affinity.standing.items()}
            weights[name].reshape(-1)[entry] = 1.0
            columns.append(torch.cat([value.reshape(-1) for value in affinity(weights).values()]).double().numpy())
    return np.stack(columns, 1)


def test_the_operator_is_pygmtools_matrix_between_candidates():
    problem = hidden_problem()
    affinity = Affinity(problem.edges)
    # All nodes in one graph: inputs 0-2, bias 3, first layer 4-7, second layer 8-12, outputs 13-14.
    blocks = {("first.weight", 4, 0), ("first.bias", 4, 3), ("second.weight", 8, 4), ("head.weight", 13, 8)}
    graphs = []
    for state in (problem.target, problem.source):
        weights = [
            (to + i, start + k, float(value))
            for key, to, start in sorted(blocks)
            for (i, k), value in np.ndenumerate(np.atleast_2d(state[key].numpy().T).T)
        ]
        graphs.append(weights)
    connectivity = torch.tensor([[[to, start] for to, start, _ in graph] for graph in graphs])
    features = torch.tensor([[[value] for _, _, value in graph] for graph in graphs])
    pygmtools.set_backend("pytorch")
    matrix = pygmtools.utils.build_aff_mat(
        None, features[:1], connectivity[:1], None, features[1:], connectivity[1:],
        torch.tensor([15]), None, torch.tensor([15]), None,
        edge_aff_fn=lambda one, two: torch.exp(-torch.cdist(one, two)),
    )[0].numpy()  # fmt: skip
    matrix = matrix + matrix.T  # pygmtools has each edge in one direction

    def candidate(i: int, j: int) -> int:
        return j * 15 + i

    nodes = {"first": range(4, 8), "second": range(8, 13)}
    rows = [candidate(i, j) for name in affinity.sizes for i in nodes[name] for j in nodes[name]]
    np.testing.assert_allclose(written_out(affinity), matrix[np.ix_(rows, rows)], atol=1e-5)
    still = [candidate(k, k) for k in (0, 1, 2, 3, 13, 14)]
    standing = torch.cat([value.reshape(-1) for value in affinity.standing.values()])
    np.testing.assert_allclose(standing, matrix[np.ix_(rows, still)].sum(1), rtol=1e-5)
    assert affinity.exact


@pytest.mark.parametrize("at_once", [1, 700, 2**24])
def test_affinities_in_parts_are_those_in_memory(at_once):
    target, source, first, second = torch.randn(6, 4, 3), torch.randn(6, 4, 3), torch.rand(6, 6), torch.rand(4, 4)
    direct = torch.exp(-(target[:, None, :, None] - source[None, :, None, :]).norm(dim=-1))
    for keep in (False, True):
        kernel = _Exact.of(target, source, keep, at_once)
        torch.testing.assert_close(kernel.to_first(second), torch.einsum("ijkl,kl->ij", direct, second))
        torch.testing.assert_close(kernel.to_second(first), torch.einsum("ijkl,ij->kl", direct, first))


@pytest.mark.parametrize("width", [1, 9])
def test_few_features_approximate_the_affinities_of_large_layers(width):
    target, source = 0.1 * torch.randn(24, 20, width), 0.1 * torch.randn(24, 20, width)
    exact, near = _Exact.of(target, source, True), _LowRank.of(target, source)
    for there, weights in (("to_first", torch.rand(20, 20)), ("to_second", torch.rand(24, 24))):
        wanted, found = (getattr(kernel, there)(weights) for kernel in (exact, near))
        torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.0)
        correlation = np.corrcoef(wanted.reshape(-1).numpy(), found.reshape(-1).numpy())[0, 1]
        assert correlation > 0.9


@pytest.mark.parametrize(("sizes", "expected"), [((30, 20), 2), ((100, 90), 2 * RANK)], ids=["exact", "approximate"])
def test_a_product_is_foretold_from_a_part_of_it(sizes, expected):
    target, source = torch.rand(*sizes, 9), torch.rand(*sizes, 9)
    affinity = Affinity([Edges("w", ("g", "h"), ("produces", "consumes"), target, source)])
    ticks = itertools.count()
    watch = Stopwatch(affinity.device, lambda: float(next(ticks)))  # all that is timed takes one
    seconds = affinity.seconds(affinity.uniform(), watch)
    assert seconds == pytest.approx(expected, rel=0.05)  # features without weight are left out


@pytest.mark.parametrize(
    ("second", "sizes", "expected"),
    [("h", (30, 20), 0), ("h", (100, 90), 10), (None, (100, 90), 90)],
    ids=["exact", "approximate", "fixed nodes"],
)
def test_building_affinities_is_foretold_from_a_part_of_them(second, sizes, expected):
    target, source = torch.rand(*sizes, 9), torch.rand(*sizes, 9)
    edges = [Edges(key, ("g", second), ("produces", "consumes"), target, source) for key in "vw"]
    ticks = itertools.count()
    watch = Stopwatch(torch.device("cpu"), lambda: float(next(ticks)))  # all that is timed takes one
    assert seconds_of_building(edges, watch, 900) == 2 * expected
    assert next(ticks) == 2 * bool(expected)  # one tensor of a shape is timed


def test_a_part_of_an_exact_product_has_some_target_channels():
    target, source = torch.rand(20, 15, 3), torch.rand(20, 15, 3)
    part, times = _Exact.of(target, source, False, 2 * 15 * 20 * 15).part()
    assert (len(part.target), times) == (2, 10.0)
    assert part.to_first(torch.rand(15, 15)).shape == (2, 20)
    assert part.to_second(torch.rand(20, 20)).shape == (15, 15)


# --- against pygmtools ------------------------------------------------------------------------------


def one_group(size: int, seed: int) -> tuple[Affinity, torch.Tensor]:
    affinity = Affinity([loop(size, seed)])
    matrix = torch.from_numpy(written_out(affinity)).float()
    # pygmtools numbers candidates by the source's channel first.
    order = torch.arange(size * size).reshape(size, size).T.reshape(-1)
    return affinity, matrix[order][:, order]


@pytest.mark.parametrize("size", [3, 6])
def test_the_spectral_solution_is_pygmtools(size):
    affinity, matrix = one_group(size, size)
    reference = pygmtools.sm(matrix, size, size, max_iter=200, backend="pytorch")
    found, rests = principal(affinity, affinity.uniform(), 200)
    assert rests
    torch.testing.assert_close(found["g"] / found["g"].norm(), reference / reference.norm(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [4, 6])
def test_the_random_walk_is_pygmtools(size):
    affinity, matrix = one_group(size, size)
    reference = pygmtools.rrwm(matrix, size, size, max_iter=100, sk_iter=20, alpha=0.2, beta=30, backend="pytorch")
    found, _ = walk(affinity, affinity.uniform(), ReweightedRandomWalk())
    torch.testing.assert_close(found["g"] / found["g"].sum(), reference / reference.sum(), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("size", [4, 5, 6])
def test_ipfp_scores_at_least_what_pygmtools_does_and_at_most_the_best_of_all(size):
    affinity, matrix = one_group(size, size)
    reference = pygmtools.ipfp(matrix, size, size, max_iter=50, backend="pytorch")
    flat = reference.T.reshape(-1)
    orders, score, _ = fixed_point(affinity, affinity.uniform(), 50)
    scores = []
    for order in itertools.permutations(range(size)):
        vertex = as_candidates({"g": torch.tensor(order)}, affinity.uniform())
        scores.append(inner(affinity(vertex), vertex))
    assert score == pytest.approx(scores[list(itertools.permutations(range(size))).index(tuple(orders["g"].tolist()))])
    assert float(flat @ matrix @ flat) - 1e-4 <= score <= max(scores) + 1e-4


# --- against SciPy and brute force ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_frank_wolfe_is_scipys_quadratic_assignment(seed):
    edges = loop(8, seed)
    similarity = WeightSimilarity([edges])
    first, second = edges.target[..., 0].double().numpy(), edges.source[..., 0].double().numpy()
    reference = quadratic_assignment(first, second, options={"maximize": True, "P0": "barycenter", "maxiter": 100})
    orders, value, rests = frank_wolfe(similarity, similarity.uniform(), 100)
    assert rests
    assert value >= reference.fun - 1e-4
    order = orders["g"].numpy()
    assert value == pytest.approx(float((first * second[np.ix_(order, order)]).sum()), rel=1e-5)


@given(sizes=st.tuples(st.integers(2, 4), st.integers(2, 4)), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_no_solver_beats_brute_force_and_descents_end_where_no_group_does_better(sizes, seed):
    torch.manual_seed(seed)
    problem = hidden_problem(sizes)
    every = [
        problem.distance({"first": Coupling(torch.tensor(one)), "second": Coupling(torch.tensor(two))})
        for one in itertools.permutations(range(sizes[0]))
        for two in itertools.permutations(range(sizes[1]))
    ]
    for name in ("emd", "coordinate-descent", "spectral", "reweighted-random-walk", "ipfp", "frank-wolfe"):
        distances = [problem.distance(found.couplings) for found in solved(problem, name)]
        assert min(distances) >= min(every) * (1 - 1e-6)
        if name == "emd":
            assert min(distances) <= np.median(every) * (1 + 1e-6)


@pytest.mark.parametrize("size", [2, 5, 7])
def test_groups_of_up_to_seven_channels_are_matched_as_brute_force_does(size):
    networks = tuple(nn.Sequential(nn.Linear(3, size), nn.Tanh(), nn.Linear(size, 2)) for _ in range(2))
    groups = find_groups(networks[0], torch.zeros(1, 3))
    (name,) = (group.name for group in groups.free)
    problem = MatchingProblem(groups, networks, Recipe(criterion="weights").align)
    every = [problem.distance({name: Coupling(torch.tensor(o))}) for o in itertools.permutations(range(size))]
    for solver in ("emd", "coordinate-descent", "frank-wolfe"):
        assert problem.distance(solved(problem, solver)[0].couplings) == pytest.approx(min(every), rel=1e-6)


def test_fused_gromov_is_assignment_without_structure_and_finds_structure_alone():
    cost, inside = torch.rand(9, 9).double(), torch.rand(9, 9).double()
    inside = inside + inside.T
    order = torch.randperm(9)
    moved = inside[torch.argsort(order)][:, torch.argsort(order)]
    found, _ = fused(cost, inside, torch.rand(9, 9).double(), 0.0, 100)
    assert torch.equal(found, assign({"g": -cost})["g"])
    near = 1.0 - torch.eye(9).double()[order] * 0.9 + 0.9 * cost
    found, converged = fused(near, inside, moved, 0.99, 100)
    assert converged
    assert torch.equal(found, order)


def test_implicit_gradients_of_sinkhorn_are_those_of_finite_differences():
    logits, weights = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: (Sinkhorn.apply(x) * weights).sum(), logits.requires_grad_(), atol=1e-6)
    plan = Sinkhorn.apply(logits)
    for axis in (0, 1):
        torch.testing.assert_close(plan.sum(axis), torch.ones(5, dtype=torch.float64))


# --- costs that are updated -------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["digits_resnet(width=0.5)", 'cifar_resnet20(shortcut="A", in_channels=1)'])
def test_updated_costs_are_recomputed_ones(arch):
    models = [build_network(arch).eval() for _ in range(2)]
    groups = find_groups(models[0], torch.zeros(1, 1, 8, 8))
    problem = MatchingProblem(groups, (models[0], models[1]), Recipe(criterion="weights").align)
    shared = SharedCosts(problem)
    for start in (None, problem.placements(couplings_of(groups))):
        descent = Descent(shared, start)
        for _ in range(3):
            for number, root in enumerate(problem.roots):
                descent.improve(number)
                state = apply_couplings(groups, descent.couplings, problem.source)
                cost = weight_cost(problem.parts(root), problem.target, state)[0]
                now = descent.placed[root.name][root.name]
                torch.testing.assert_close(descent.cost(number)[:, now], cost, rtol=1e-4, atol=1e-4)


def couplings_of(groups):
    return {name: Coupling(order) for name, order in random_permutations(groups, 3).items()}


@pytest.mark.parametrize("permuted", [True, False])
def test_large_networks_descend_from_invariants_where_one_sweep_brings_them_near(permuted):
    networks = [build_network("digits_resnet(width=0.5)").eval() for _ in range(2)]
    groups = find_groups(networks[0], torch.zeros(1, 1, 8, 8))
    if permuted:
        networks[1].load_state_dict(apply_couplings(groups, couplings_of(groups), networks[0].state_dict()))
    problem = MatchingProblem(groups, (networks[0], networks[1]), Recipe(criterion="weights").align)
    shared = SharedCosts(problem)
    optimum = from_invariants(shared)
    assert optimum is not None
    assert problem.distance(optimum.couplings) < 1e-6 or not permuted
    nearest = min((swept(shared), optimum), key=lambda found: problem.distance(found.couplings))
    unmoved = Solution({group.name: Coupling.identity(group.size) for group in groups.free})
    assert len(with_invariants(shared, [unmoved], work_limit=0.0)) == 2
    # One sweep is not the end of a descent, but where the networks are alike.
    assert len(with_invariants(shared, [nearest], work_limit=0.0)) == 1 + permuted


def test_edges_within_a_group_never_raise_the_distance():
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.inner, self.head = nn.Linear(3, 12), nn.Linear(12, 12), nn.Linear(12, 2)

        def forward(self, x):
            x = self.into(x)
            return self.head(x + torch.relu(self.inner(x)))

    for seed in range(8):
        torch.manual_seed(seed)
        networks = (Stream(), Stream())
        groups = find_groups(networks[0], torch.zeros(1, 3))
        problem = MatchingProblem(groups, networks, Recipe(criterion="weights").align)
        assert any(edges.ends[0] == edges.ends[1] for edges in problem.edges)
        descent = Descent(SharedCosts(problem))
        totals = [problem.distance(descent.couplings)]
        while descent.improve(0):
            totals.append(problem.distance(descent.couplings))
        assert len(totals) > 1
        assert all(later < earlier for earlier, later in itertools.pairwise(totals))


# --- whole networks ---------------------------------------------------------------------------------

RECIPES = [
    *({"criterion": "weights", "solver": solver} for solver in ("spectral", "reweighted-random-walk", "frank-wolfe")),
    *({"criterion": "mixture", "solver": solver} for solver in ("spectral", "ipfp", "frank-wolfe")),
    {"criterion": "weights", "solver": "ipfp", "start": "spectral"},
    {"criterion": "weights", "solver": "frank-wolfe", "start": "activations"},
    {"criterion": "weights", "solver": "coordinate-descent", "start": "spectral"},
    {"criterion": "mixture", "solver": "coordinate-descent", "start": "activations", "mixture": 0.7},
    *({"criterion": criterion, "solver": "fused-gromov"} for criterion in ("activations", "weights", "mixture")),
    {"solver": "sinkhorn-implicit", "iterations": 3},
]


@pytest.mark.parametrize("settings_", RECIPES, ids=str)
def test_planted_permutations_are_recovered(settings_):
    models, groups, expected = planted("digits_resnet(width=0.5)", (1, 8, 8))
    found = align(models, groups, Recipe(**settings_).align, noise_images(200, batch_size=50)).couplings[1]
    assert found.keys() == expected.keys()
    for name, order in expected.items():
        assert torch.equal(found[name].permutation, order), name


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "sinkhorn"])
def test_blocks_and_what_is_inside_them_get_valid_permutations(solver):
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.grouped = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3, groups=4)
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            return self.head(torch.relu(self.grouped(torch.relu(self.first(x)))).mean((2, 3)))

    networks = [Grouped(), Grouped()]
    groups = find_groups(networks[0], torch.zeros(1, 1, 8, 8))
    criterion = "weights" if "weights" in facts(solver).criteria else "activations"
    recipe = Recipe.with_read(
        {"criterion": criterion, "solver": solver, "iterations": 200 if criterion == "weights" else 2}
    )
    found = align(networks, groups, recipe.align, noise_images(40)).couplings[1]
    assert found.keys() == {group.name for group in groups.free}
    images = torch.randn(2, 1, 8, 8)
    before = networks[1](images)
    networks[1].load_state_dict(apply_couplings(groups, found, networks[1].state_dict()))
    torch.testing.assert_close(networks[1](images), before)


def test_a_limit_that_is_reached_is_said_and_gives_permutations():
    networks = [build_network("digits_resnet(width=0.5)").eval() for _ in range(2)]
    groups = find_groups(networks[0], torch.zeros(1, 1, 8, 8))
    for solver in ("spectral", "reweighted-random-walk", "ipfp", "frank-wolfe"):
        recipe = Recipe(criterion="weights", solver=solver, iterations=1)
        with pytest.warns(DepfuseWarning, match=f"{solver} did not converge in 1 iterations"):
            found = align(networks, groups, recipe.align, None).couplings[1]
        for group in groups.free:
            assert sorted(found[group.name].permutation.tolist()) == list(range(group.size))


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_weights_give_couplings_and_broken_ones_a_sentence(solver):
    networks = [build_network("digits_resnet(width=0.25)").eval() for _ in range(2)]
    groups = find_groups(networks[0], torch.zeros(1, 1, 8, 8))
    criterion = "weights" if "weights" in facts(solver).criteria else "activations"
    recipe = Recipe.with_read({"criterion": criterion, "solver": solver, "iterations": 5})
    with torch.no_grad():
        for network in networks:
            for tensor in network.parameters():
                tensor.fill_(0.1)
    found = align(networks, groups, recipe.align, noise_images(20)).couplings[1]
    for group in groups.free:
        coupling = found[group.name]
        if solver in ("sinkhorn", "unbalanced"):
            torch.testing.assert_close(coupling.matrix, torch.full_like(coupling.matrix, 1.0 / group.size**2))
        elif solver in ("cca", "zip-it"):
            assert bool(torch.isfinite(coupling.maps.produces).all() & torch.isfinite(coupling.maps.consumes).all())
        else:
            assert sorted(coupling.permutation.tolist()) == list(range(group.size))
    if criterion == "weights" and solver != "identity":
        with torch.no_grad():
            networks[1].conv1.weight[0] = float("nan")
        with pytest.raises(RecipeError, match="not finite"):
            align(networks, groups, recipe.align, noise_images(20))


def test_contradictions_are_refused():
    networks = [build_network("digits_resnet(width=0.25)") for _ in range(2)]
    groups = find_groups(networks[0], torch.zeros(1, 1, 8, 8))
    for solver in ("spectral", "reweighted-random-walk", "ipfp", "frank-wolfe"):
        with pytest.raises(RecipeError, match=f"{solver} matches weights"):
            align(networks, groups, Recipe(solver=solver).align, noise_images(4))
    with pytest.raises(RecipeError, match="lowers a loss"):
        align(networks, groups, Recipe(criterion="weights", solver="sinkhorn-implicit").align, noise_images(4))
    with pytest.raises(RecipeError, match="start ipfp would be ignored"):
        Recipe.create(criterion="weights", solver="spectral", start="ipfp")
    with pytest.raises(RecipeError, match="needs calibration images"):
        align(networks, groups, Recipe(criterion="weights", solver="ipfp", start="activations").align, None)
    with torch.no_grad():
        networks[1].conv1.weight[0] = float("nan")
    for solver in ("cca", "zip-it"):
        with pytest.raises(DataError, match="parent 2 gives NaN for calibration image 0"):
            align(networks, groups, Recipe(solver=solver).align, noise_images(4))
    with pytest.raises(RecipeError, match="the solver itself"):
        Recipe.create(criterion="weights", solver="ipfp", start="ipfp")
    with pytest.raises(RecipeError, match="is none of emd"):
        Recipe.create(solver="hungarian")
