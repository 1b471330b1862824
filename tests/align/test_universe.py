"""Many parents through one universe: consistent, recovered, independent of the order, and linear in memory."""

from __future__ import annotations

import functools
import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from depfuse import Recipe, fuse
from depfuse.align import Coupling, align, apply_couplings, compose, invert
from depfuse.align.costs import activation_cost
from depfuse.align.problem import MatchingProblem
from depfuse.align.solvers.frank_wolfe_universe import UniverseSimilarity, highest, value
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.pairwise import MOST, PairwiseCollector
from depfuse.align.universe import Universe
from depfuse.data import Loader, Preprocessing, Split
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import LimitWarning, RecipeError
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.fusion.parents import Parents
from depfuse.groups import find_groups, random_permutations
from depfuse.networks.copying import evaluation_copy

EXAMPLE = torch.zeros(1, 1, 8, 8)


class Residual(nn.Module):
    """A stream that two layers write to, a hidden group inside the block, and a hidden group behind it."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.first, self.middle = nn.Conv2d(width, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, width, 3, padding=1)
        self.hidden, self.head = nn.Linear(width, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.second(torch.relu(self.middle(self.first(x)))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


class Grouped(nn.Module):
    """Blocks of a grouped convolution: groups inside groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.blocks(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


def network(seed: int, kind: type[nn.Module] = Residual) -> nn.Module:
    torch.manual_seed(seed)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 1.0)
    return model


def images(count: int = 48) -> Loader:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Loader(
        Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(mean=(0.5,), std=(0.25,)), batch_size=16
    )


def permuted(model: nn.Module, groups, seed: int) -> nn.Module:
    copy = evaluation_copy(model)
    couplings = {name: Coupling(order) for name, order in random_permutations(groups, seed).items()}
    copy.load_state_dict(apply_couplings(groups, couplings, model.state_dict()))
    return copy


@functools.cache
def copies(count: int, kind: type[nn.Module] = Residual):
    """A network and others in other orders of channels, and their groups: what is done with them changes none."""
    first = network(0, kind)
    groups = find_groups(first, EXAMPLE)
    return [first, *(permuted(first, groups, seed) for seed in range(1, count))], groups


def orders(couplings) -> dict[str, list[int]]:
    return {name: coupling.permutation.tolist() for name, coupling in couplings.items()}


def close(first: nn.Module, second: nn.Module) -> None:
    with torch.no_grad():
        probe = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(first(probe), second(probe), rtol=1e-4, atol=1e-5)


SETTINGS = [
    {"criterion": "activations"},
    {"criterion": "weights"},
    {"criterion": "weights", "solver": "coordinate-descent"},
    {"criterion": "weights", "solver": "frank-wolfe"},
    {"criterion": "weights", "solver": "spectral"},
    {"criterion": "weights", "solver": "ipfp"},
    {"criterion": "weights", "solver": "reweighted-random-walk"},
    {"criterion": "weights", "solver": "fused-gromov"},
    {"criterion": "mixture"},
    {"criterion": "mixture", "solver": "frank-wolfe"},
]


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_permuted_copies_of_one_parent_are_recovered(count, setting):
    parents, groups = copies(count)
    recipe = Recipe.create(refit="none", universe=True, renorm="none", **setting)
    result = fuse(Parents(parents, groups=groups), recipe, images())
    close(result.child, parents[0])
    for model, couplings in (
        zip(parents, result.couplings, strict=True) if setting["criterion"] != "activations" else ()
    ):
        aligned = apply_couplings(groups, couplings, model.state_dict())
        for key, tensor in parents[0].state_dict().items():
            torch.testing.assert_close(aligned[key], tensor)
    assert not result.not_converged


@pytest.mark.parametrize("criterion", ["activations", "weights"])
def test_groups_inside_blocks_are_recovered(criterion):
    parents, groups = copies(4, Grouped)
    result = fuse(
        Parents(parents, groups=groups),
        Recipe(refit="none", universe=True, criterion=criterion, renorm="none"),
        images(),
    )
    close(result.child, parents[0])


@given(seed=st.integers(0, 1000), count=st.integers(3, 5), criterion=st.sampled_from(["weights", "activations"]))
@settings(max_examples=5, deadline=None)
def test_any_two_parents_are_matched_through_the_universe(seed, count, criterion):
    parents = [network(seed + number) for number in range(count)]
    groups = find_groups(parents[0], EXAMPLE)
    recipe = Recipe(refit="none", universe=True, criterion=criterion, renorm="none")
    towards = [align(parents, groups, recipe.changed(order=k + 1).align, images()).couplings for k in range(count)]
    for k in range(count):  # towards[k][i] is P_k P_i^T
        assert orders(towards[k][k]) == {group.name: list(range(group.size)) for group in groups.free}
        for i, j in itertools.product(range(count), repeat=2):
            assert orders(compose(groups, towards[j][i], towards[k][j])) == orders(towards[k][i])
        assert orders(invert(groups, towards[k][0])) == orders(towards[0][k])


@pytest.mark.parametrize(
    "setting",
    [{"criterion": "activations"}, {"criterion": "weights"}, {"solver": "frank-wolfe", "criterion": "weights"}],
)
def test_the_parents_order_does_not_matter(setting):
    parents = [network(seed) for seed in range(4)]
    groups = find_groups(parents[0], EXAMPLE)
    shares = (0.1, 0.2, 0.3, 0.4)
    recipe = Recipe.create(refit="none", universe=True, weights=shares, **setting)
    first = fuse(Parents(parents, groups=groups), recipe, images()).child
    turned = [2, 0, 3, 1]
    recipe = Recipe.create(refit="none", universe=True, weights=[shares[i] for i in turned], order=2, **setting)
    second = fuse(Parents([parents[i] for i in turned], groups=groups), recipe, images()).child
    for key, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", [{"universe": True}, {"reference": 2}])
@pytest.mark.parametrize("criterion", ["activations", "weights"])
def test_the_childs_order_changes_its_channels_and_not_its_function(how, criterion):
    parents = [network(seed) for seed in range(3)]
    one = Parents(parents, groups=find_groups(parents[0], EXAMPLE))
    children = [
        fuse(one, Recipe(refit="none", criterion=criterion, order=k + 1, **how), images()).child for k in range(3)
    ]
    for child in children[1:]:
        close(child, children[0])
    assert not torch.equal(children[0].stem.weight, children[2].stem.weight)


def test_a_reference_is_what_all_are_matched_to():
    parents = [network(seed) for seed in range(3)]
    groups = find_groups(parents[0], EXAMPLE)
    found = align(parents, groups, Recipe(reference=3).align, images()).couplings
    pair = align([parents[2], parents[0]], groups, Recipe().align, images()).couplings
    assert orders(found[2]) == orders(pair[0])
    assert orders(found[0]) == orders(pair[1])
    turned = fuse(Parents([parents[2], parents[0], parents[1]], groups=groups), Recipe(refit="none"), images())
    same = fuse(Parents(parents, groups=groups), Recipe(refit="none", reference=3), images())
    for key, tensor in turned.child.state_dict().items():
        torch.testing.assert_close(same.child.state_dict()[key], tensor)


def similarity_of_pairs(parents, groups, couplings) -> float:
    states = [
        apply_couplings(groups, found, model.state_dict()) for found, model in zip(couplings, parents, strict=True)
    ]
    keys = [name for name, _ in parents[0].named_parameters()]
    return sum(
        float((first[key] * second[key]).sum()) for first, second in itertools.combinations(states, 2) for key in keys
    )


@pytest.mark.parametrize("solver", ["emd", "frank-wolfe"])
def test_all_pairs_are_more_alike_than_by_one_reference(solver):
    parents = [network(seed) for seed in range(5)]
    groups = find_groups(parents[0], EXAMPLE)
    through = align(parents, groups, Recipe(universe=True, criterion="weights", solver=solver).align, None).couplings
    to_one = align(parents, groups, Recipe(criterion="weights", solver=solver).align, None).couplings
    assert similarity_of_pairs(parents, groups, through) > similarity_of_pairs(parents, groups, to_one)


def test_no_single_move_of_a_parent_makes_activations_more_alike():
    parents = [network(seed) for seed in range(4)]
    groups = find_groups(parents[0], EXAMPLE)
    couplings = align(parents, groups, Recipe(universe=True, distance="pearson").align, images()).couplings
    for group in groups.free:
        places = [found[group.name].permutation for found in couplings]
        for i in range(4):
            cost = 0.0
            for j in range(4):
                if i != j:
                    (moments,) = collect_moments([parents[j], parents[i]], groups, images(), "after")
                    cost = cost + activation_cost(moments[group.name], "pearson")[places[j]]
            rows = torch.arange(group.size)
            for a, b in itertools.combinations(range(group.size), 2):
                other = places[i].clone()
                other[[a, b]] = other[[b, a]]
                assert cost[rows, other].sum() >= cost[rows, places[i]].sum() - 1e-6


@pytest.mark.parametrize("count", [3, 6, 7, 14])
def test_memory_is_linear_in_the_number_of_parents(count):
    parents = [network(seed) for seed in range(count)]
    groups = find_groups(parents[0], EXAMPLE)
    universe = Universe(parents, groups, Recipe(universe=True, distance="pearson", iterations=8).align, images(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)
        universe.match_by_activations(None)
    assert universe.collector is not None
    together = min(count, MOST)
    pairs = together * (together - 1) // 2
    assert universe.collector.most_kept <= pairs + (count > MOST) * MOST <= 4 * count
    for root in universe.roots:
        for parent in range(count):
            order = universe.placed[parent][root.name][root.name]
            assert sorted(order.tolist()) == list(range(root.size))


@pytest.mark.parametrize("distance", ["cosine", "pearson", "cosine-pearson", "scaled", "euclidean"])
def test_the_others_mean_counts_like_the_sum_over_them(distance):
    parents = [network(seed) for seed in range(4)]
    groups = find_groups(parents[0], EXAMPLE)
    shares = (0.1, 0.4, 0.2, 0.3)
    collector = PairwiseCollector(parents, groups, images(), "after")
    placed = {i: random_permutations(groups, i) for i in range(4)}
    every = collector.among(range(4))
    few = collector.among_and_others([2, 0], {i: placed[i] for i in (1, 3)}, shares, distance)
    for group in groups.free:
        wanted = every.similarity(group.name, 2, placed, shares, distance)
        found = few.similarity(group.name, 2, {0: placed[0]}, shares, distance)
        # Constants along rows or columns, and of all, change no assignment.
        for table in (wanted, found):
            table -= table.mean(0, keepdim=True)
            table -= table.mean(1, keepdim=True)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@given(seed=st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_frank_wolfes_similarity_slope_and_line_are_those_of_all_pairs(seed):
    parents = [network(seed + number) for number in range(3)]
    groups = find_groups(parents[0], EXAMPLE)
    recipe = Recipe(refit="none", criterion="weights")
    edges = [MatchingProblem(groups, (parent, parent), recipe.align).edges for parent in parents]
    similarity = UniverseSimilarity(edges, (0.5, 0.3, 0.2))
    generator = torch.Generator().manual_seed(seed)
    at = [{n: torch.rand(v.shape, generator=generator) for n, v in x.items()} for x in similarity.start()]
    step = [{n: torch.rand(v.shape, generator=generator) - 0.5 for n, v in x.items()} for x in at]
    along = similarity.along(at, step)
    for t in (0.0, 0.3, 1.0):
        there = [{n: x[n] + t * s[n] for n in x} for x, s in zip(at, step, strict=True)]
        assert similarity(there) == pytest.approx(value(along, t), rel=1e-3, abs=1e-3)
    gradient = similarity.gradient(at)
    slope = sum(float((g[n] * s[n]).sum()) for g, s in zip(gradient, step, strict=True) for n in g)
    assert slope == pytest.approx(along[1], rel=1e-3, abs=1e-3)
    best = highest(along)
    assert all(value(along, best) >= value(along, t) - 1e-9 for t in np.linspace(0, 1, 21))


def test_a_parent_without_weight_is_matched_all_the_same():
    parents, groups = copies(3)
    recipe = Recipe(refit="none", universe=True, criterion="weights", renorm="none", weights=(1.0, 0.0, 0.0))
    result = fuse(Parents(parents, example=EXAMPLE, groups=groups), recipe, None)
    close(result.at((0.2, 0.4, 0.4)), parents[0])


@pytest.mark.parametrize("criterion", ["activations", "weights", "mixture"])
def test_costs_that_are_all_equal_give_permutations(criterion):
    parents = [network(seed) for seed in range(3)]
    for model in parents:
        for tensor in model.parameters():
            nn.init.zeros_(tensor)
    groups = find_groups(network(0), EXAMPLE)
    couplings = align(parents, groups, Recipe(universe=True, criterion=criterion).align, images()).couplings
    for found in couplings:
        for group in groups.free:
            assert sorted(found[group.name].permutation.tolist()) == list(range(group.size))


def test_parents_with_nan_are_refused():
    parents = [network(seed) for seed in range(3)]
    with torch.no_grad():
        parents[2].stem.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(RecipeError, match=r"parent 3 holds NaN or infinite values in stem\.weight"):
        fuse(Parents(parents, example=EXAMPLE), Recipe(refit="none", universe=True), images())


@pytest.mark.parametrize("setting", [{"distance": "pearson"}, {"criterion": "weights", "solver": "frank-wolfe"}])
def test_a_limit_is_said_and_the_result_is_whole(setting):
    parents = [network(seed) for seed in range(4)]
    groups = find_groups(parents[0], EXAMPLE)
    with pytest.warns(LimitWarning, match="did not converge in 1 iterations"):
        result = fuse(
            Parents(parents, groups=groups),
            Recipe.create(refit="none", universe=True, iterations=1, **setting),
            images(),
        )
    assert len(result.not_converged) >= 1
    assert all("best result so far" in sentence for sentence in result.not_converged)
    for found in result.couplings:
        for group in groups.free:
            assert sorted(found[group.name].permutation.tolist()) == list(range(group.size))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"universe": True, "reference": 1}, "reference 1 would be ignored: it needs align.through reference"),
        ({"order": 0}, "recipe setting align.order"),
    ],
)
def test_contradictory_recipes_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.create(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reference": 3}, "align.through.parent 3 is out of range: the 2 parents are numbered from 1 to 2"),
        ({"universe": True, "order": 5}, "align.order 5 is out of range"),
        ({"universe": True, "solver": "sinkhorn"}, "solver sinkhorn does not match many parents by activations"),
        (
            {"universe": True, "criterion": "weights", "solver": "ipfp", "start": "identity"},
            "start identity would be ignored: it needs align.through reference",
        ),
        (
            {"solver": "sinkhorn", "regularisation": 2.0, "order": 2},
            "soft couplings cannot be brought to the order of parent 2",
        ),
    ],
)
def test_recipes_that_do_not_fit_the_parents_are_refused(settings, words):
    parents, groups = copies(2)
    with pytest.raises(RecipeError, match=words):
        align(parents, groups, Recipe.create(**settings).align, images())


def test_the_judge_of_several_parents_prefers_their_matching():
    parents, groups = copies(3)
    judge = EnsembleJudge(Ensemble(parents, ()), groups, "none", CalibrationSplit.for_matchings(images()))
    matched = align(parents, groups, Recipe(universe=True).align, images()).couplings
    naive = [{group.name: Coupling.identity(group.size) for group in groups.free}] * 3
    shares = (1 / 3,) * 3
    assert judge.of_members(range(3), matched, shares) < judge.of_members(range(3), naive, shares)


@pytest.mark.parametrize("kind", [Residual, Grouped])
@pytest.mark.parametrize("criterion", ["activations", "mixture", "weights"])
def test_more_parents_than_are_watched_together_are_recovered(kind, criterion):
    parents, groups = copies(MOST + 2, kind)
    recipe = Recipe.with_read(
        {"refit": "none", "universe": True, "criterion": criterion, "distance": "pearson", "renorm": "none"}
    )
    close(fuse(Parents(parents, groups=groups), recipe, images()).child, parents[0])
