"""Couplings by linear maps: CCA against scikit-learn, ZipIt! against a naive loop, and what keeps the function."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from digits_parents import digits_parents
from planted import noise_images, planted
from sklearn.cross_decomposition import CCA
from torch import nn

from depfuse import Recipe, find_groups, fuse, naive_average
from depfuse.align import Coupling, align, apply_couplings, compose, invert
from depfuse.align.coupling import Maps
from depfuse.align.solvers.cca import canonical_maps
from depfuse.align.solvers.zip_it import maps_of, zipped
from depfuse.align.statistics.pairwise import PairwiseCollector
from depfuse.data import Loader, calibration_loader
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate
from depfuse.fusion.parents import Parents
from depfuse.groups import random_permutations
from depfuse.models import build_network
from depfuse.recipe.solvers import ZipIt
from depfuse.renorm.folding import fold


def linear_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Linear(7, 5), nn.Linear(5, 3))


def random_maps(groups) -> dict[str, Coupling]:
    found = {}
    for group in groups.free:
        matrix = torch.eye(group.size, dtype=torch.float64) + 0.3 * torch.randn(group.size, group.size).double()
        found[group.name] = Coupling(maps=Maps(matrix, torch.linalg.inv(matrix).T.contiguous()))
    return found


def loaded(model: nn.Module, state) -> nn.Module:
    other = copy.deepcopy(model)
    other.load_state_dict(dict(state))
    return other


def gap(first: nn.Module, second: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float((first(images) - second(images)).abs().max() / first(images).abs().max())


# --- couplings ------------------------------------------------------------------------------------


def test_any_invertible_map_keeps_the_function_of_a_linear_network_and_is_undone_by_its_inverse():
    model = linear_network()
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    maps = random_maps(groups)
    state = apply_couplings(groups, maps, model.state_dict())
    assert not torch.allclose(state["1.weight"], model.state_dict()["1.weight"], atol=0.1)
    images = torch.randn(4, 1, 8, 8)
    assert gap(model, loaded(model, state), images) < 1e-5
    back = apply_couplings(groups, invert(groups, maps), state)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(back[key], tensor, rtol=1e-4, atol=1e-5)


def test_maps_compose_with_permutations_and_with_one_another():
    model = linear_network()
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    orders = {name: Coupling(order) for name, order in random_permutations(groups, 3).items()}
    state = model.state_dict()
    for first, second in itertools.permutations([random_maps(groups), random_maps(groups), orders], 2):
        stepwise = apply_couplings(groups, second, apply_couplings(groups, first, state))
        at_once = apply_couplings(groups, compose(groups, first, second), state)
        for key in state:
            torch.testing.assert_close(at_once[key], stepwise[key], rtol=1e-4, atol=1e-5)


def test_a_coupling_is_of_one_kind_and_its_maps_of_one_shape():
    square = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="either a permutation"):
        Coupling(plan=square, maps=Maps(square, square))
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 2\)"):
        Maps(square, square[:2, :2])
    matrix = Coupling(maps=Maps(-2.0 * square, square)).matrix
    torch.testing.assert_close(matrix, square / 3)


def test_the_joint_covariance_is_that_of_stored_activations():
    models = [build_network("digits_resnet(width=0.25)").eval() for _ in range(3)]
    groups = find_groups(models[0], torch.zeros(1, 1, 8, 8))
    loader = noise_images(30, batch_size=7)
    found = PairwiseCollector(models, groups, loader, "before").covariances()["layer1.conv1"]
    images = torch.cat([batch for batch, _ in loader])
    with torch.no_grad():
        stored = [m.layer1.bn1(m.layer1.conv1(torch.relu(m.bn1(m.conv1(images))))) for m in models]
    rows = torch.cat([part.transpose(0, 1).flatten(1) for part in stored]).double()
    assert len(found) == 1
    torch.testing.assert_close(found[0], torch.cov(rows, correction=0), rtol=1e-4, atol=1e-5)


# --- canonical correlations -----------------------------------------------------------------------


def covariances(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    joint = torch.from_numpy(np.cov(np.concatenate([x, y], 1), rowvar=False, ddof=0))
    n = x.shape[1]
    return joint[:n, :n], joint[n:, n:], joint[:n, n:]


def test_the_map_takes_scikit_learns_canonical_variables_to_one_another():
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(4000, 4))
    x, y = (hidden @ generator.normal(size=(4, 4)) + noise * generator.normal(size=(4000, 4)) for noise in (0.4, 0.8))
    maps = canonical_maps(*covariances(x, y), 1e-9)
    reference = CCA(n_components=4, scale=False, tol=1e-12, max_iter=20000).fit(x, y)
    moved = (y - y.mean(0)) @ maps.produces.numpy().T + x.mean(0)
    variables, theirs = reference.transform(moved), reference.transform(x, y)[1]
    for i in range(4):
        assert abs(np.corrcoef(variables[:, i], theirs[:, i])[0, 1]) > 1 - 1e-4
    np.testing.assert_allclose(np.cov(moved, rowvar=False), np.cov(x, rowvar=False), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(maps.produces @ maps.consumes.T, torch.eye(4, dtype=torch.float64))


def test_with_much_ridge_the_map_is_the_best_rotation_and_dead_channels_do_no_harm():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(500, 5)), generator.normal(size=(500, 5))
    x[:, 2] = y[:, 3] = 0.0
    target, source, cross = covariances(x, y)
    left, _, right = np.linalg.svd(cross.numpy())
    maps = canonical_maps(target, source, cross, 1e9)
    alive = maps.produces[[0, 1, 3, 4]]
    scale = float((target.diagonal().mean() / source.diagonal().mean()).sqrt())
    np.testing.assert_allclose(alive, scale * (left @ right)[[0, 1, 3, 4]], rtol=1e-4, atol=1e-6)
    silent = canonical_maps(*(torch.zeros(3, 3, dtype=torch.float64) for _ in range(3)), 0.1)
    assert bool(torch.isfinite(silent.produces).all())


def test_cca_finds_any_invertible_map_between_linear_networks():
    model = linear_network()
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    other = loaded(model, apply_couplings(groups, random_maps(groups), model.state_dict()))
    recipe = Recipe(solver="cca", regularisation=1e-6)
    found = align([model, other], groups, recipe.align, noise_images(600, batch_size=100)).couplings[1]
    back = apply_couplings(groups, found, other.state_dict())
    for key, tensor in model.state_dict().items():
        assert float((back[key] - tensor).norm() / tensor.norm()) < 0.02, key


def test_cca_finds_planted_permutations():
    models, groups, expected = planted("digits_resnet(width=0.5)", (1, 8, 8))
    found = align(
        models, groups, Recipe(solver="cca", regularisation=0.01).align, noise_images(200, batch_size=50)
    ).couplings[1]
    for name, order in expected.items():
        maps = found[name].maps
        assert torch.equal(maps.produces.argmax(1), order), name
        torch.testing.assert_close(maps.produces, torch.eye(len(order)).double()[order], rtol=0.0, atol=0.3)


@pytest.mark.parametrize("solver", ["cca", "zip-it"])
def test_the_child_of_a_network_and_its_permuted_copy_is_that_network(solver, digits):
    (model,) = digits_parents("same-a")
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    state = dict(model.state_dict())
    for name, order in random_permutations(groups, 4).items():
        state = groups[name].permute(state, order)
    recipe = Recipe.with_read({"solver": solver, "regularisation": 1e-6, "renorm": "none"})
    result = fuse([model, loaded(model, state)], recipe, calibration_loader(digits, 300))
    images = next(iter(Loader(digits.test, digits.preprocessing, batch_size=50)))[0]
    assert gap(model, result.child, images) < (0.03 if solver == "cca" else 1e-4)
    assert result.folded == (solver == "cca")


# --- BatchNorm's scales ---------------------------------------------------------------------------


def test_folding_keeps_the_function_and_then_maps_do_too():
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(),
        nn.Linear(64, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for norm in (network[1], network[3]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.normal_()
            norm.bias.normal_()
    images = torch.randn(3, 1, 8, 8)
    groups = find_groups(network, images)
    plain = apply_couplings(groups, maps := random_maps(groups), network.state_dict())
    assert not gap(network, loaded(network, plain), images) < 0.1, "maps alone lose the function"
    (folded,), fewer = fold([network], groups, images, network)
    assert gap(network, folded, images) < 1e-5
    mixed = loaded(folded, apply_couplings(fewer, maps, folded.state_dict()))
    assert not torch.allclose(mixed[0].weight, folded[0].weight, atol=0.1)
    assert gap(network, mixed, images) < 1e-4
    assert network[1].weight.min() < 0 < folded[1].weight.min()


def test_a_batch_norm_that_no_layer_feeds_cannot_be_folded():
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.first(x)
            x = x + self.inner(torch.relu(x))
            return self.head(torch.relu(self.norm(x)).mean((2, 3)))

    networks = [PreActivation().eval() for _ in range(2)]
    with pytest.raises(RecipeError, match="cannot mix the channels of norm: this BatchNorm takes more than"):
        fuse(networks, Recipe(solver="cca"), noise_images(20))
    assert fuse(networks, Recipe(solver="zip-it"), noise_images(20)).child is not None

    class Own(nn.BatchNorm2d):
        pass

    for network in networks:
        network.norm = Own(4)
    with pytest.raises(RecipeError, match=r"solver cca does not know what norm \(Own\) does .* choose solver zip-it"):
        fuse(networks, Recipe(solver="cca"), noise_images(20))


ZIP = ZipIt()

# --- ZipIt! ---------------------------------------------------------------------------------------


def naively_zipped(similarity: list[list[float]], parents: int) -> list[set[int]]:
    """The paper's loop with sets of channels and a table of pairs."""
    size = len(similarity) // parents
    clusters = {i: {i} for i in range(len(similarity))}
    table = {frozenset(pair): similarity[pair[0]][pair[1]] for pair in itertools.combinations(clusters, 2)}
    budget = [int((len(similarity) - size) // parents * ZIP.within) for _ in range(parents)]
    forbidden: set[frozenset[int]] = set()
    while len(clusters) > size:
        choice = {pair: value for pair, value in table.items() if pair not in forbidden} or table
        first, second = sorted(max(choice, key=lambda pair: choice[pair]))
        for other in clusters:
            if other not in (first, second):
                ends = frozenset((first, other)), frozenset((second, other))
                factor = ZIP.reuse if len(clusters[first] | clusters[second]) >= parents else 1.0
                table[ends[0]] = factor * min(table[end] for end in ends)
                if ends[1] in forbidden:
                    forbidden.add(ends[0])
        clusters[first] |= clusters.pop(second)
        table = {pair: value for pair, value in table.items() if second not in pair}
        parent = first // size
        if parent == second // size:
            budget[parent] -= 1
            if budget[parent] <= 0:
                own = range(parent * size, (parent + 1) * size)
                forbidden |= {frozenset(pair) for pair in itertools.combinations(own, 2)}
    return [clusters[first] for first in sorted(clusters)]


@pytest.mark.parametrize(("parents", "size", "seed"), [(2, 1, 0), (2, 5, 1), (2, 24, 2), (3, 8, 3), (4, 20, 4)])
def test_channels_are_zipped_as_by_the_naive_loop(parents, size, seed):
    features = torch.randn(parents * size, 12, generator=torch.Generator().manual_seed(seed)).double()
    similarity = torch.corrcoef(features)
    member = zipped(similarity, parents, ZIP.reuse, ZIP.within)
    expected = naively_zipped(similarity.tolist(), parents)
    found = [set(torch.nonzero(member == child)[:, 0].tolist()) for child in range(size)]
    assert found == expected
    if size > 20:
        assert any(len({i // size for i in cluster}) == 1 and len(cluster) > 1 for cluster in found)


def test_maps_of_a_zip_are_weighted_means_of_what_gives_and_sums_of_what_reads():
    # Channel 0 of the child: both of parent 1 and one of parent 2; channel 1: the other of parent 2.
    one, two = maps_of(torch.tensor([0, 0, 0, 1]), (0.25, 0.75))
    child = (
        0.25 * one.produces @ torch.tensor([1.0, 2.0]).double()
        + 0.75 * two.produces @ torch.tensor([4.0, 8.0]).double()
    )
    torch.testing.assert_close(child, torch.tensor([(0.25 * 1 + 0.25 * 2 + 0.75 * 4) / 1.25, 8.0]).double())
    torch.testing.assert_close(one.consumes, torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double())
    torch.testing.assert_close(two.consumes, torch.eye(2).double())
    silent = maps_of(torch.tensor([0, 0, 0, 1]), (1.0, 0.0))[1]
    torch.testing.assert_close(silent.produces, torch.tensor([[0.5, 0.0], [0.0, 0.0]]).double())


def test_three_copies_of_a_network_are_zipped_to_it_whatever_their_order(digits):
    (model,) = digits_parents("same-a")
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    models = [model]
    for seed in (1, 2):
        state = dict(model.state_dict())
        for name, order in random_permutations(groups, seed).items():
            state = groups[name].permute(state, order)
        models.append(loaded(model, state))
    recipe = Recipe(solver="zip-it", renorm="none", reference=3, weights=(0.5, 0.3, 0.2))
    result = fuse(models, recipe, calibration_loader(digits, 300))
    images = next(iter(Loader(digits.test, digits.preprocessing, batch_size=50)))[0]
    assert gap(model, result.child, images) < 1e-4
    for name, coupling in result.couplings[2].items():
        torch.testing.assert_close(coupling.maps.consumes, torch.eye(groups[name].size).double())
    torch.testing.assert_close(result.at(result.shares).state_dict(), result.child.state_dict())
    with pytest.raises(RecipeError, match="fuse again"):
        result.at((0.2, 0.3, 0.5))


@pytest.mark.parametrize("solver", ["cca", "zip-it"])
def test_parents_of_two_widths_are_brought_to_one_first(solver):
    models = [build_network(f"digits_resnet(width={width})").eval() for width in (0.5, 1.0)]
    recipe = Recipe(solver=solver, weights=(0.0, 1.0))
    result = fuse(models, recipe, noise_images(100))
    assert result.child.conv1.weight.shape == models[1].conv1.weight.shape
    assert result.folded == (solver == "cca")
    for own, narrow in zip(result.couplings[1].values(), result.couplings[0].values(), strict=True):
        if solver == "cca":
            assert own.permutation is not None
            assert narrow.maps is not None
        else:  # the share is the wide parent's: its channels alone make the means
            sums = own.maps.produces.sum(1)
            torch.testing.assert_close(sums, own.maps.consumes.any(1).double())


@pytest.mark.parametrize("solver", ["cca", "zip-it"])
def test_heads_over_different_labels_read_the_mixed_channels(solver, digits):
    (model,) = digits_parents("same-a")
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    state = dict(model.state_dict())
    for name, order in random_permutations(groups, 4).items():
        state = groups[name].permute(state, order)
    parents, sets = [], [list(range(5)), list(range(5, 10))]
    for labels, own in zip(sets, (model.state_dict(), state), strict=True):
        parent = build_network("digits_resnet(width=1.25, classes=5)").eval()
        heads = {key: own[key][labels] for key in ("linear.weight", "linear.bias")}
        parent.load_state_dict({**own, **heads})
        parents.append(parent)
    recipe = Recipe.with_read({"solver": solver, "regularisation": 1e-6, "renorm": "none", "parents_renorm": "none"})
    result = fuse(Parents(parents, labels=sets, template=model), recipe, calibration_loader(digits, 300))
    images = next(iter(Loader(digits.test, digits.preprocessing, batch_size=50)))[0]
    assert gap(model, result.child, images) < (0.03 if solver == "cca" else 1e-4)


@pytest.mark.parametrize("solver", ["cca", "zip-it"])
def test_parents_that_differ_get_a_child_better_than_their_average(solver, digits):
    models = digits_parents("a", "b")
    result = fuse(models, Recipe.with_read({"solver": solver, "regularisation": 1.0}), calibration_loader(digits, 500))
    test = Loader(digits.test, digits.preprocessing, batch_size=500)
    naive = naive_average(result.unmatched, (0.5, 0.5), result.groups)
    result.renormalise(naive, result.couplings, (0.5, 0.5), "reset")
    assert evaluate(result.child, test).accuracy > evaluate(naive, test).accuracy + 0.1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "cca", "criterion": "weights"}, "works on activations"),
        ({"solver": "zip-it", "criterion": "mixture"}, "works on activations"),
        ({"solver": "zip-it", "universe": True}, "does not match many parents"),
        ({"solver": "zip-it", "order": 2}, "leave out align.order"),
        ({"solver": "cca", "start": "spectral"}, "start spectral would be ignored"),
    ],
)
def test_what_the_solvers_do_not_do_is_said(settings, words):
    models = [build_network("digits_resnet(width=0.25)").eval() for _ in range(2)]
    with pytest.raises(RecipeError, match=words):
        fuse(models, Recipe.create(**settings), noise_images(20))
