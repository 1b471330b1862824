"""Parents of unequal widths: plans between channels, networks brought to a width, children of either width."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import transport_cost
from torch import nn
from widen import doubled

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import Coupling
from depfuse.align.transport import emd, in_order, sinkhorn, unbalanced, whole
from depfuse.align.unequal_widths.copies import cluster_channels, copy_channels
from depfuse.align.unequal_widths.pairing import pair_groups
from depfuse.align.unequal_widths.rectangular import resize_state, shares
from depfuse.data import Loader, Preprocessing, Split
from depfuse.errors import RecipeError
from depfuse.fusion.parents import Parents
from depfuse.fusion.widths import shapes_of
from depfuse.models import build_network
from depfuse.renorm import reset_batch_norm

EXAMPLE = torch.zeros(1, 1, 8, 8)


def images(count: int = 200, batch_size: int = 50) -> Loader:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=batch_size)


def lively(model: nn.Module, loader: Loader | None = None) -> nn.Module:
    """BatchNorm layers that do something, with the statistics of the images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    reset_batch_norm(model, images() if loader is None else loader)
    return model.eval()


def digits(width: float, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(f"digits_resnet(width={width})")


class Streams(nn.Module):
    """A stream through depthwise convolutions and a gate, a concatenation, and a flatten before the head."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.norm = nn.Conv2d(1, width, 3, stride=2, bias=False), nn.BatchNorm2d(width)
        self.depthwise, self.point = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1)
        self.gate, self.side = nn.Linear(width, width), nn.Conv2d(width, 2 * width, 1)
        self.alone, self.head = nn.BatchNorm2d(3 * width), nn.Linear(3 * width * 9, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.point(F.relu(self.depthwise(x))) * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return self.head(F.relu(self.alone(torch.cat([x, self.side(x)], 1))).flatten(1))


class Grouped(nn.Module):
    """A convolution in blocks."""

    def __init__(self, width: int, blocks: int = 2) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(1, width, 3), nn.Conv2d(width, width, 3, groups=blocks)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(F.relu(self.grouped(F.relu(self.stem(x)))).mean((2, 3)))


NETWORKS = {
    "digits": lambda width, seed=0: digits(width, seed),
    "streams": lambda width, seed=0: Streams(int(4 * width), seed),
}


def agree(first: nn.Module, second: nn.Module, tolerance: float = 1e-4) -> None:
    batch = next(iter(images()))[0]
    with torch.no_grad():
        torch.testing.assert_close(first(batch), second(batch), rtol=tolerance, atol=tolerance)


# --- plans ------------------------------------------------------------------------------------------


@st.composite
def costs(draw):
    targets, sources = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    mean = draw(st.sampled_from([0.0, -3.0]))
    return torch.from_numpy(np.random.default_rng(draw(st.integers(0, 999))).normal(mean, size=(targets, sources)))


@given(costs())
@settings(max_examples=60, deadline=None)
def test_exact_transport_is_that_of_pot(cost):
    sizes = [np.full(size, 1 / size) for size in cost.shape]
    least = float(cost.min())  # negative costs are infeasible to ot.emd2
    reference = ot.emd2(*sizes, (cost - least).numpy()) + least
    coupling = emd(cost)
    assert transport_cost(cost, coupling) == pytest.approx(reference, abs=1e-9)
    assert float(coupling.matrix.sum()) == pytest.approx(1.0)


@given(costs())
@settings(max_examples=60, deadline=None)
def test_whole_is_the_best_way_that_splits_no_channel(cost):
    for even in (True, False):
        large, small = max(cost.shape), min(cost.shape)
        table = (cost if cost.shape[0] == large else cost.T).numpy()
        least, most = (large // small, -(-large // small)) if even else (1, large)
        possible = [
            sum(table[row, column] for row, column in enumerate(columns)) / large
            for columns in itertools.product(range(small), repeat=large)
            if all(least <= columns.count(column) <= most for column in range(small))
        ]
        coupling = whole(cost, even=even)
        assert transport_cost(cost, coupling) == pytest.approx(min(possible), abs=1e-9)
        moved = coupling.matrix if cost.shape[0] == large else coupling.matrix.T
        assert ((moved > 0).sum(1) == 1).all()
        assert float(moved.sum()) == pytest.approx(1.0)


@given(costs(), st.sampled_from([0.5, 1.0]))
@settings(max_examples=15, deadline=None)
def test_entropic_transport_of_unequal_sizes_is_that_of_pot(cost, regularisation):
    plan = sinkhorn(cost, regularisation).matrix
    sizes = [np.full(size, 1 / size) for size in cost.shape]
    scale = float((cost - cost.mean()).abs().mean())
    if scale == 0.0:
        expected = np.outer(*sizes)
    else:
        expected = ot.sinkhorn(*sizes, cost.numpy() / scale, regularisation, method="sinkhorn_log", numItermax=5000)
    np.testing.assert_allclose(plan.numpy(), expected, atol=2e-2 / cost.numel())


@given(costs())
@settings(max_examples=30, deadline=None)
def test_unbalanced_transport_meets_masses_the_better_the_stricter(cost):
    strict, loose = (unbalanced(cost, strictness).matrix for strictness in (20.0, 0.5))
    missed = []
    for plan in (strict, loose):
        assert float(plan.sum()) == pytest.approx(1.0)
        misses = [(plan.sum(axis) - 1 / cost.shape[1 - axis]).abs().sum() for axis in (0, 1)]
        missed.append(float(sum(misses)))
    assert missed[0] <= missed[1] + 1e-6
    assert float((cost * loose).sum()) <= float((cost * strict).sum()) + 1e-6


def test_channels_in_order_go_to_their_neighbours():
    plan = in_order(6, 3).matrix
    assert torch.equal(plan > 0, torch.eye(3).repeat_interleave(2, 0) > 0)
    assert in_order(5, 5).permutation is not None


# --- plans on weights ---------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_mass_is_conserved_on_the_input_side(targets, sources, seed):
    generator = torch.Generator().manual_seed(seed)
    plan = torch.rand(targets, sources, dtype=torch.float64, generator=generator)
    coupling = Coupling(plan=plan / plan.sum())
    consumed, produced = shares(coupling, "consumes"), shares(coupling, "produces")
    torch.testing.assert_close(consumed.sum(0), torch.ones(sources, dtype=torch.float64))
    torch.testing.assert_close(produced.sum(1), torch.ones(targets, dtype=torch.float64))
    weight = torch.rand(3, sources, dtype=torch.float64, generator=generator)
    torch.testing.assert_close((weight @ consumed.T).sum(1), weight.sum(1))


def test_weights_brought_to_a_width_are_those_of_a_loop():
    wide, narrow = (nn.Sequential(nn.Conv2d(1, n, 3), nn.ReLU(), nn.Flatten(), nn.Linear(n * 36, 2)) for n in (5, 3))
    groups = find_groups(wide, EXAMPLE)
    theirs = pair_groups(groups, find_groups(narrow, EXAMPLE))
    (group,) = groups.free
    plan = torch.rand(5, 3, dtype=torch.float64)
    old = narrow.state_dict()
    new = resize_state(groups, theirs, {group.name: Coupling(plan=plan / plan.sum())}, old, shapes_of(wide))
    for i in range(5):
        row = sum(plan[i, j] * old["0.weight"][j] for j in range(3)) / plan[i].sum()
        torch.testing.assert_close(new["0.weight"][i], row.float())
        bias = sum(plan[i, j] * old["0.bias"][j] for j in range(3)) / plan[i].sum()
        torch.testing.assert_close(new["0.bias"][i], bias.float())
        for place in range(36):
            column = sum(plan[i, j] / plan[:, j].sum() * old["3.weight"][:, 36 * j + place] for j in range(3))
            torch.testing.assert_close(new["3.weight"][:, 36 * i + place], column.float())
    assert torch.equal(new["3.bias"], old["3.bias"])


# --- joining and copying --------------------------------------------------------------------------------


def test_copies_are_joined_and_strong_channels_copied():
    points = torch.tensor([[0.0], [5.0], [0.1], [9.0], [5.2]])
    coupling = cluster_channels(torch.cdist(points, points), 3)
    members = {frozenset(torch.nonzero(row)[:, 0].tolist()) for row in coupling.matrix}
    assert members == {frozenset({0, 2}), frozenset({1, 4}), frozenset({3})}
    alike = cluster_channels(torch.zeros(6, 6), 4).matrix
    assert ((alike > 0).sum(0) == 1).all()
    assert ((alike > 0).sum(1) >= 1).all()
    repeated = copy_channels(torch.tensor([1.0, 3.0, 2.0]), 5).matrix
    assert ((repeated > 0).sum(1) == 1).all()
    assert (repeated > 0).sum(0).tolist() == [1, 2, 2]


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_child_wider_than_all_parents_keeps_their_function(kind):
    parent = lively(NETWORKS[kind](1))
    child = fuse(
        Parents([parent, parent], template=NETWORKS[kind](2)), Recipe(refit="none", renorm="none"), images()
    ).child
    agree(child, parent)
    assert shapes_of(child) == shapes_of(NETWORKS[kind](2))


# --- children ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width_of", [1, 2])
@pytest.mark.parametrize("criterion", ["activations", "weights", "mixture"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_and_itself_with_doubled_channels_give_itself(kind, criterion, width_of):
    narrow = lively(NETWORKS[kind](1))
    wide = doubled(narrow, NETWORKS[kind](2), EXAMPLE, 0)
    agree(wide, narrow)
    result = fuse([narrow, wide], Recipe(refit="none", criterion=criterion, renorm="none", width_of=width_of), images())
    agree(result.child, narrow)
    assert shapes_of(result.child) == shapes_of((narrow, wide)[width_of - 1])
    assert result.widths is not None
    assert result.groups.proof_error <= 1e-9


@pytest.mark.parametrize("solver", ["emd", "sinkhorn", "unbalanced", "coordinate-descent"])
def test_three_parents_and_a_width_that_none_has(solver):
    criterion = "weights" if solver == "coordinate-descent" else "activations"
    parents = [lively(digits(width, seed)) for seed, width in enumerate((0.5, 0.75, 0.5))]
    before = [{key: tensor.clone() for key, tensor in parent.state_dict().items()} for parent in parents]
    for template in (None, digits(0.625)):
        own = {"regularisation": 0.2} if solver == "sinkhorn" else {}
        own |= {"distance": "scaled"} if criterion == "activations" else {}
        recipe = Recipe(refit="none", solver=solver, criterion=criterion, weights=(0.5, 0.3, 0.2), **own)
        result = fuse(Parents(parents, template=template), recipe, images(100))
        assert shapes_of(result.child) == shapes_of(parents[1] if template is None else template)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in result.child.state_dict().values())
        assert len(result.couplings) == len(result.parents) == 3
        again = fuse(Parents(parents, template=template), recipe, images(100))
        assert all(torch.equal(t, again.child.state_dict()[k]) for k, t in result.child.state_dict().items())
    for parent, state in zip(parents, before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in parent.state_dict().items())


def test_blocks_of_one_size_stay_and_others_are_refused():
    groups = [prove_groups(m, find_groups(m, EXAMPLE), EXAMPLE) for m in (Grouped(4), Grouped(8), Grouped(8, 4))]
    assert len(pair_groups(groups[0], groups[0]).groups) == len(groups[0].groups)
    for other in groups[1:]:
        with pytest.raises(RecipeError, match=r"blocks of .* cannot be brought|no counterpart"):
            pair_groups(groups[0], other)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "template", "words"),
    [
        ({"width_of": 1, "refit": "ridge"}, None, "parent 2 is wider than the child"),
        ({"width_of": 3}, None, "width_of 3 names no parent"),
        ({"width_of": 1}, 1.0, "given twice"),
        ({"universe": True}, None, "unequal widths"),
        ({"reference": 1}, None, "unequal widths"),
        ({"order": 1}, None, "unequal widths"),
    ],
)
def test_contradictions(settings_, template, words):
    parents = [digits(0.5), digits(0.75)]
    with pytest.raises(RecipeError, match=words):
        fuse(Parents(parents, template=template and digits(template)), Recipe(**settings_), images(4))


def test_a_refit_follows_parents_that_were_widened():
    parents = [lively(digits(width, seed)) for seed, width in enumerate((0.5, 0.75))]
    batch = next(iter(images()))[0]
    errors = []
    with torch.no_grad():
        ensemble = torch.stack([parent(batch) for parent in parents]).mean(0)
        for refit in ("none", "ridge"):
            steps = {"refit_steps": 0} if refit == "ridge" else {}
            recipe = Recipe(refit=refit, joint_head="none", parents_renorm="none", distance="scaled", **steps)
            child = fuse(parents, recipe, images()).child
            errors.append(float((child(batch) - ensemble).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_another_depth_is_another_architecture():
    deeper = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    flat = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Identity(), nn.Flatten(), nn.Linear(216, 3))
    for parents, template in (([flat, deeper], None), ([flat, flat], deeper)):
        with pytest.raises(RecipeError, match="another architecture or depth"):
            fuse(Parents(parents, template=template), Recipe(refit="none", renorm="none"), images(4))


def test_costs_that_are_no_numbers():
    broken = torch.full((4, 2), float("nan"))
    for way in (emd, whole, lambda cost: sinkhorn(cost, 0.1), lambda cost: unbalanced(cost, 1.0)):
        with pytest.raises(RecipeError, match="not finite"):
            way(broken)
    for size in ((4, 2), (2, 4)):
        for way in (emd, whole, lambda cost: sinkhorn(cost, 0.1), lambda cost: unbalanced(cost, 1.0)):
            plan = way(torch.ones(size)).matrix
            assert float(plan.sum()) == pytest.approx(1.0)
            assert bool((plan.sum(0) > 0).all())
            assert bool((plan.sum(1) > 0).all())
