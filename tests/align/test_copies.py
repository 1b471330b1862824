"""A network and a copy with its channels in another order have that network as their child, by every solver.

Channels that the images cannot tell apart are there too: silent ones, constant ones, equal ones, and layers that weight
decay has brought to nothing.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torchvision
from planted import noise_images
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.shufflenetv2 import ShuffleNetV2

from depfuse.align import Coupling, align, apply_couplings
from depfuse.align.ties import break_tie, find_ties
from depfuse.data.loader import Loader
from depfuse.errors import DepfuseWarning, LimitWarning
from depfuse.fusion.parents import Parents
from depfuse.fusion.pipeline import fuse
from depfuse.groups import ChannelGroups, find_groups, prove_groups, random_permutations
from depfuse.recipe import Recipe
from depfuse.recipe.solvers import SOLVERS, facts

PERMUTING = [name for name in SOLVERS if facts(name).gives == "permutation" and name != "identity"]
CASES = [(solver, criterion) for solver in PERMUTING for criterion in facts(solver).criteria]


class Residual(nn.Module):
    """A stem and a residual block with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10)
        self.conv1, self.bn1 = nn.Conv2d(10, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 10, 3, 1, 1, bias=False), nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Mobile(nn.Module):
    """An inverted residual block with a depthwise convolution, ReLU6 and squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.expand, self.bn1 = nn.Conv2d(6, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depth, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.bn3 = nn.Conv2d(16, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x))
        y = F.relu6(self.bn2(self.depth(F.relu6(self.bn1(self.expand(x))))))
        y = y * self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head((x + self.bn3(self.project(y))).mean((2, 3)))


class UNet(nn.Module):
    """One step down, one up, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.down2, self.bn2 = nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.join, self.last = nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.bn1(self.down1(x)))
        deep = F.relu(self.up(F.relu(self.bn2(self.down2(wide)))))
        return self.last(F.relu(self.join(torch.cat([wide, deep], 1)))).mean((2, 3))


class Decoder(nn.Module):
    """Linear, view, transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.code = nn.Conv2d(3, 6, 4, 4), nn.Linear(6 * 4, 16)
        self.wide, self.up = nn.Linear(16, 8 * 4), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.code(F.relu(self.encode(x)).flatten(1)))
        return self.up(F.relu(self.wide(code)).view(-1, 8, 2, 2)).flatten(1)


class Blocks(nn.Module):
    """A grouped convolution and attention: blocks, and channels inside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 12, 4, 2, bias=False), nn.BatchNorm2d(12)
        self.grouped, self.bn1 = nn.Conv2d(12, 12, 3, 1, 1, groups=3, bias=False), nn.BatchNorm2d(12)
        self.norm, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.grouped(F.relu(self.bn0(self.stem(x)))))).flatten(2).mT
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


NETWORKS = (Residual, Mobile, UNet, Decoder, Blocks)


def images(count: int = 60, size: int = 8) -> Loader:
    torch.manual_seed(5)
    return noise_images(count, (3, size, size), batch_size=20)


def inputs(count: int = 20, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def worn(network: Callable[[], nn.Module], size: int = 8) -> nn.Module:
    """Build a network as training leaves it: lively statistics, one channel in four silent behind a ReLU."""
    torch.manual_seed(0)
    model = network()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(inputs(64, size))
        for module in model.eval().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias[::4] = -9.0
    return model


def permuted(model: nn.Module, groups: ChannelGroups) -> nn.Module:
    orders = {name: Coupling(order) for name, order in random_permutations(groups, 3).items()}
    other = copy.deepcopy(model)
    other.load_state_dict(apply_couplings(groups, orders, model.state_dict()))
    return other


@cache
def planted(network: type[nn.Module]) -> tuple[nn.Module, nn.Module, ChannelGroups]:
    """A network, a copy with its channels in another order, and the groups."""
    model = worn(network)
    groups = prove_groups(model, find_groups(model, inputs(1)), inputs(1), seed=0)
    assert groups.count >= 2
    return model, permuted(model, groups), groups


def recipe_of(solver: str, criterion: str) -> Recipe:
    few = {"iterations": 10} if solver == "sinkhorn-implicit" else {}
    return Recipe(solver=solver, criterion=criterion, **few)


def assert_recovered(model: nn.Module, other: nn.Module, groups: ChannelGroups, recipe: Recipe, size: int = 8) -> None:
    """Every tensor of the copy, brought to the network's order, is the network's, bit for bit.

    Channels that were exchanged then were equal in all that they have.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        found = align([model, other], groups, recipe.align, images(size=size)).couplings[1]
    state = apply_couplings(groups, found, other.state_dict())
    different = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, state[key])]
    assert different == []


@pytest.mark.parametrize(("solver", "criterion"), CASES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_permuted_copy_is_recovered_by_every_solver(network, solver, criterion):
    assert_recovered(*planted(network), recipe_of(solver, criterion))


FAMILIES = {
    "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(num_classes=5, width_mult=0.15),
    "shufflenet": lambda: ShuffleNetV2([1, 1, 1], [8, 16, 32, 64, 64], num_classes=5),
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5),
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 16, 32, num_classes=5),
}


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "criterion"), [("emd", "activations"), ("fused-gromov", "activations"),
                                                   ("coordinate-descent", "weights"), ("ipfp", "weights")])  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_in_torchvisions_families(family, solver, criterion):
    model = worn(FAMILIES[family], size=64)
    example = inputs(1, 64)
    groups = prove_groups(model, find_groups(model, example), example, seed=0)
    assert_recovered(model, permuted(model, groups), groups, recipe_of(solver, criterion), size=64)


@pytest.mark.parametrize("distance", ["cosine", "pearson", "cosine-pearson", "scaled", "euclidean"])
@pytest.mark.parametrize("taps", ["after", "before", "both"])
@pytest.mark.parametrize("network", [Residual, Blocks])
def test_it_is_by_every_distance_and_at_all_taps(network, distance, taps):
    assert_recovered(*planted(network), Recipe(distance=distance, taps=taps))


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")  # a part of the decoder is not followed
@pytest.mark.parametrize("network", [Residual, Mobile, UNet, Decoder])
def test_linear_maps_recover_it_where_channels_vary_and_where_they_do_not(network):
    """CCA: its directions without variance go where the permutation has them, and the function stays on new images."""
    model, other, _ = planted(network)
    recipe = Recipe(solver="cca", refit="none", renorm="none")
    child = fuse(Parents([model, other], example=inputs(1)), recipe, images()).child
    with torch.no_grad():
        wanted, given = model(inputs()), child(inputs())
    assert float((given - wanted).abs().max() / wanted.abs().max()) < 1e-4


@pytest.mark.parametrize("solver", PERMUTING)
def test_a_network_stays_as_it_is_when_it_meets_itself(solver):
    """Silent channels do not move, though no image tells them apart."""
    model, _, groups = planted(Residual)
    recipe = recipe_of(solver, facts(solver).criteria[0])
    found = align([model, copy.deepcopy(model)], groups, recipe.align, images()).couplings[1]
    for group in groups.free:
        assert found[group.name].permutation.tolist() == list(range(group.size)), group.name


def test_equal_channels_stay_in_their_order():
    """Of channels that are alike in all, each stays at home if its place is free."""
    model = copy.deepcopy(planted(Residual)[0])
    groups = planted(Residual)[2]
    with torch.no_grad():
        for key, axis in [("conv1.weight", 0), ("bn1.weight", 0), ("bn1.bias", 0), ("conv2.weight", 1)]:
            tensor = dict(model.named_parameters())[key]
            tensor.copy_(tensor.index_select(axis, torch.tensor([0, 1, 1, 3, 1, *range(5, 12)])))
        for statistic in (model.bn1.running_mean, model.bn1.running_var):
            statistic.copy_(statistic[[0, 1, 1, 3, 1, *range(5, 12)]])
    found = align([model, copy.deepcopy(model)], groups, Recipe().align, images()).couplings[1]
    for group in groups.free:
        assert found[group.name].permutation.tolist() == list(range(group.size)), group.name


def test_a_layer_that_weight_decay_has_brought_to_nothing_gives_a_finite_child_by_maps():
    parents = [copy.deepcopy(worn(Residual)), copy.deepcopy(worn(Residual))]
    with torch.no_grad():
        for number, parent in enumerate(parents):
            parent.conv1.weight.normal_(0, 10.0 ** (-22 - 2 * number))
            parent.bn1.running_mean.zero_()
            parent.bn1.running_var.zero_()
    child = fuse(Parents(parents, example=inputs(1)), Recipe(solver="cca", refit="none", renorm="none"), images()).child
    with torch.no_grad():
        assert bool(torch.isfinite(child(inputs())).all())
    assert float(child.conv1.weight.detach().abs().max()) < 1e-15
    assert float(child.conv2.weight.detach().abs().max()) < 10 * float(parents[0].conv2.weight.detach().abs().max())


# --- ties -------------------------------------------------------------------------------------------


def test_ties_are_what_can_be_exchanged_at_no_cost():
    """Any two that cost no more the other way round are tied."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        cost = torch.randint(0, 3, (6, 6), generator=generator).double()
        order = torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
        tied = torch.zeros(6, 6, dtype=torch.bool)
        for tie in find_ties(cost, order, 1e-9):
            tied[tie.rows[:, None], tie.rows[None, :]] = tie.allowed
        tied.fill_diagonal_(False)
        moved = cost[:, order]
        for i in range(6):
            for k in range(6):
                if i != k and moved[i, k] + moved[k, i] <= moved[i, i] + moved[k, k]:
                    assert tied[i, k]
                    assert tied[k, i]


def test_the_second_cost_decides_then_the_order():
    cost = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    (tie,) = find_ties(cost, torch.tensor([1, 0, 2]), 1e-9)
    assert tie.rows.tolist() == [0, 1]
    home = torch.tensor([[False, True], [True, False]])
    assert break_tie(tie, torch.zeros(2, 2, dtype=torch.float64), home).tolist() == [1, 0]
    assert break_tie(tie, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), home) is None
    assert list(find_ties(cost + torch.eye(3) * -0.1, torch.arange(3), 0.01)) == []


# --- what did not converge -------------------------------------------------------------------------


def test_a_limit_is_in_the_result_and_its_warning_is_an_ordinary_one():
    """It is data in the result whatever filters do; a filter that makes it an error fires when it is given."""
    model, other, groups = planted(Residual)
    recipe = Recipe(solver="spectral", criterion="weights", iterations=1, refit="none", renorm="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fuse(Parents([model, other], groups=groups), recipe, images())
    (sentence,) = result.not_converged
    assert sentence.startswith("spectral did not converge in 1 iterations")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LimitWarning)
        with pytest.raises(LimitWarning, match="spectral did not converge"):
            fuse(Parents([model, other], groups=groups), recipe, images())


def test_a_coupling_that_did_not_converge_says_so():
    model, _, groups = planted(Residual)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    recipe = Recipe(solver="sinkhorn", distance="pearson", regularisation=1e-4)
    with pytest.warns(LimitWarning, match="sinkhorn did not converge in 2000 iterations"):
        found = align([model, other], groups, recipe.align, images())
    assert len(found.not_converged) >= 1


@pytest.mark.parametrize("criterion", ["weights", "mixture"])
def test_heads_over_more_labels_are_not_compared_by_weights(criterion):
    model, _, groups = planted(Residual)
    other = copy.deepcopy(model)
    other.head = nn.Linear(10, 2)
    solver = "emd" if criterion == "weights" else "coordinate-descent"
    found = align([model, other], groups, Recipe(solver=solver, criterion=criterion).align, images()).couplings[1]
    for group in groups.free:
        assert found[group.name].permutation.tolist() == list(range(group.size)), group.name
