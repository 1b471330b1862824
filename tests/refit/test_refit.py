"""Refitting in closed form: rows, ridge, clusters, the walk, and parents with different labels."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import Coupling
from depfuse.align.coupling import apply_couplings
from depfuse.cli import main
from depfuse.data import Loader, Preprocessing, Split
from depfuse.data.augmentation import Augmentation
from depfuse.ensemble.label_sets import LabelSets
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import ArchitectureError, DepfuseWarning, RecipeError
from depfuse.fusion.parents import Parents
from depfuse.groups import random_permutations
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, write_checkpoint
from depfuse.merge import AlignedParents, average
from depfuse.merge.shares import Shares
from depfuse.models import build_network, with_classes
from depfuse.recipe.refits import LeastSquares, NoRefit, RegMean, Ridge
from depfuse.refit import Schedule, Session, refit_heads, refit_layers
from depfuse.refit.layerwise.clusters import cluster_channels
from depfuse.refit.layerwise.ridge import Rows, gram, ridge
from depfuse.refit.layerwise.rows import Window
from depfuse.refit.layerwise.streams import Streams
from depfuse.refit.layerwise.targets import Targets
from depfuse.refit.program.folded import Folded, Teacher
from depfuse.refit.program.graph import Program
from depfuse.refit.program.units import find_units
from depfuse.refit.program.walk import Walk
from depfuse.refit.second_order.natural_gradient import DAMPING, MOMENTUM, NaturalGradient
from depfuse.refit.second_order.second_pass import REUSED
from depfuse.renorm import reset_batch_norm, reset_keeping_function
from tests.divergences import divergence, sample, slope

SOLVED = Ridge(steps=0, augment=False)  # layer by layer only


def images(count: int, shape=(1, 8, 8), batch_size: int = 25) -> Loader:
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=batch_size)


class Mixed(nn.Module):
    """Grouped, depthwise, strided and dilated convolutions, a concatenation, a gate, a stream and a bare BatchNorm."""

    def __init__(self, seed: int = 0, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.grouped, self.depthwise = (
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        )
        self.after, self.gate = nn.BatchNorm2d(8), nn.Linear(8, 8)
        self.alone = nn.BatchNorm2d(16)
        self.squeeze = nn.Conv2d(16, 8, 1, bias=False)
        self.head = nn.Linear(8, outputs)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.3)
                nn.init.normal_(module.bias, 0.0, 0.3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.after(self.depthwise(self.grouped(x))) + x)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        z = F.silu(self.alone(torch.cat([x, y], 1)))
        return self.head((self.squeeze(z) + y).mean((2, 3)))


NETWORKS = {
    "digits_resnet": lambda seed: _seeded(seed, "digits_resnet"),
    "narrow digits_resnet": lambda seed: _seeded(seed, "digits_resnet(width=0.5)"),
    "mixed": Mixed,
    "perceptron": lambda seed: _perceptron(seed),
    "neck": lambda seed: _neck(seed),
    "upsampling": lambda seed: _upsampling(seed),
}


def _seeded(seed: int, arch: str) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(arch)


def _perceptron(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12, bias=False), nn.ReLU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 4)
    )


def _neck(seed: int) -> nn.Module:
    """A norm of the pooled features before the head."""
    torch.manual_seed(seed)
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(10)]
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 10, 3), *pooled, nn.Linear(10, 4))


def _upsampling(seed: int) -> nn.Module:
    """Transposed convolutions, of separate groups and with norms."""
    torch.manual_seed(seed)
    up = nn.ConvTranspose2d(8, 8, 2, 2, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    last = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1), nn.LeakyReLU(0.01)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), *up, *last, *pooled)


def parent(name: str, seed: int, loader: Loader) -> nn.Module:
    model = NETWORKS[name](seed).eval()
    reset_batch_norm(model, loader)
    return model


def proved(model: nn.Module):
    example = torch.rand(1, 1, 8, 8)
    return prove_groups(model, find_groups(model, example), example)


def refitted(models, loader, settings=SOLVED, seed=0):
    groups = proved(models[0])
    identity = {group.name: Coupling.identity(group.size) for group in groups.free}
    shares = [1 / len(models)] * len(models)
    child = average(models, groups, [identity] * len(models), shares)
    refit_layers(child, AlignedParents(models, groups, [identity] * len(models), shares), loader, settings, seed=seed)
    return child


# --- rows and ridge -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(4, 8, (3, 1), groups=2),
        nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        nn.Conv1d(4, 5, 3, padding=1),
        nn.Conv3d(4, 2, 2),
        nn.ConvTranspose1d(4, 5, 3, stride=2, padding=1),
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=1, output_padding=(1, 2), groups=2, dilation=(2, 1)),
        nn.ConvTranspose3d(4, 2, 2, 2),
        nn.Linear(7, 5),
    ],
)
def test_rows_times_matrix_is_the_layer(layer):
    shapes = [(3, 2, 7), (3, 4, 9), (3, 4, 9, 7), (3, 4, 5, 4, 3)]
    x = torch.randn(shapes[layer.weight.dim() - 2])
    program = Program(layer, x)
    (unit,) = find_units(program, ())
    window = Window.of(unit.node)
    matrix = window.matrix(layer.weight.detach())
    assert torch.equal(window.weight(matrix, layer.weight.shape), layer.weight)
    for places in (None, torch.tensor([0, 1])):
        given = window.inputs(x, places) @ matrix + layer.bias.detach().reshape(window.groups, 1, -1)
        torch.testing.assert_close(given, window.outputs(layer(x).detach(), places), rtol=1e-4, atol=1e-5)


def test_the_gram_matrix_is_that_of_explicit_patches():
    x = torch.randn(5, 3, 8, 8)
    program = Program(nn.Conv2d(3, 4, 3, padding=1, bias=False), x)
    rows = Window.of(find_units(program, ())[0].node).inputs(x)
    patches = F.unfold(x, 3, padding=1).reshape(5, 3, 9, 64).permute(0, 3, 2, 1).reshape(320, 27).double()
    torch.testing.assert_close(gram(rows, rows)[0], patches.T @ patches, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_is_least_squares_with_penalty_rows(intercept):
    x, y, prior = torch.randn(2, 200, 6), torch.randn(2, 200, 3) + 2, torch.zeros(2, 6, 3)
    full = torch.cat([x, torch.ones(2, 200, 1)], 2) if intercept else x
    solution = ridge(Rows(full, y), prior, intercept=intercept, strengths=(0.1,))
    assert solution.strength == 0.1
    for group in range(2):
        centred = x[group].double() - (x[group].double().mean(0) if intercept else 0)
        penalty = (0.1 * centred.square().sum(0).mean()).sqrt() * torch.eye(full.shape[2], dtype=torch.float64)[:6]
        system = torch.cat([full[group].double(), penalty])
        sides = torch.cat([y[group].double(), torch.zeros(6, 3, dtype=torch.float64)])
        expected = torch.linalg.lstsq(system, sides).solution
        torch.testing.assert_close(solution.weight[group], expected, rtol=1e-4, atol=1e-5)


def test_ridge_chooses_its_strength_on_rows_it_has_not_seen():
    x = torch.randn(1, 40, 30)
    noise, signal = torch.randn(1, 40, 2), x[:, :, :1].repeat(1, 1, 2)
    prior = torch.zeros(1, 30, 2)
    of_noise, of_signal = (ridge(Rows(x, y), prior, intercept=False).strength for y in (noise, signal))
    assert of_noise > of_signal


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_ridge_survives_singular_systems(rows):
    x = torch.randn(1, rows, 1).repeat(1, 1, 20)
    x[..., 5:] = 0.0
    found = ridge(Rows(x, torch.ones(1, rows, 2)), torch.zeros(1, 20, 2), intercept=False).weight
    assert bool(torch.isfinite(found).all())


def test_moments_of_a_solution_are_those_of_what_it_predicts():
    x = torch.cat([torch.randn(2, 300, 4) + 3, torch.ones(2, 300, 1)], 2)
    solution = ridge(Rows(x, torch.randn(2, 300, 3) + x[..., :3]), torch.zeros(2, 4, 3), intercept=True)
    weight = solution.weight[:, :-1]
    mean, variance = solution.moments(weight)
    predicted = x[..., :-1].double() @ weight
    torch.testing.assert_close(mean, predicted.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance, predicted.var(1, correction=0), rtol=1e-4, atol=1e-5)


def test_bounds_leave_what_a_relu_hides_free():
    x = torch.randn(1, 400, 5)
    x = torch.cat([x, torch.ones(1, 400, 1)], 2)
    truth = x.double() @ torch.randn(6, 3, dtype=torch.float64)
    after = truth.relu().float()
    bounds = torch.where(after > 0, -torch.inf, 0.0)
    found = ridge(Rows(x, after, bounds), torch.zeros(1, 5, 3), intercept=True, sweeps=200).weight
    torch.testing.assert_close((x.double() @ found).relu(), truth.relu(), rtol=1e-2, atol=1e-2)


def test_clusters_keep_copies_together_and_drop_what_does_not_vary():
    signals = torch.randn(1000, 3, dtype=torch.float64).abs()
    channels = torch.stack([signals[:, 0], signals[:, 1], 2 * signals[:, 0], signals[:, 2], 0 * signals[:, 2]], 1)
    mixtures = cluster_channels(torch.cov(channels.T), 3)
    assert bool((mixtures >= 0).all())
    torch.testing.assert_close(mixtures.square().sum(1), torch.ones(3, dtype=torch.float64))
    groups_of_channels = {tuple(torch.nonzero(row > 1e-6)[:, 0].tolist()) for row in mixtures}
    assert groups_of_channels == {(0, 2), (1,), (3,)}
    row = mixtures[mixtures[:, 2] > 0][0]
    assert float(row[2] / row[0]) == pytest.approx(2.0)


# --- the walk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_is_its_network(name):
    model, batch = NETWORKS[name](0).eval(), torch.rand(5, 1, 8, 8)
    program = Program(model, batch)
    find_units(program, ())
    values = program.values_of(batch)
    for node in program.nodes:
        values[node] = program.call(node, model.state_dict(), values)
    torch.testing.assert_close(values[program.output], model(batch))


def test_positions_are_flattened_in_whatever_layout_they_come():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    program = Program(model, torch.rand(5, 1, 8, 8))
    batch = torch.rand(5, 1, 8, 8)
    values = program.values_of(batch)
    for node in program.nodes:
        value = program.call(node, model.state_dict(), values)
        values[node] = value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
    torch.testing.assert_close(values[program.output], model(batch))


def test_a_walk_that_holds_nothing_gives_the_same():
    model, loader = Mixed().eval(), images(20, batch_size=5)
    program = Program(model, next(iter(loader))[0])
    walks = [Walk(program, [model.state_dict()], loader, limit) for limit in (2**30, 0)]
    tensors = [n for n, node in enumerate(program.nodes, start=1) if isinstance(node.meta["val"], torch.Tensor)]
    for end in (tensors[1], tensors[5], tensors[5], tensors[-1]):
        node = program.nodes[end - 1]
        first, second = ([own[0][node].clone() for own in walk.until([end], [node])] for walk in walks)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_linear_layer_is_a_unit_and_tied_weights_are_none():
    model = Mixed().eval()
    units = find_units(Program(model, torch.rand(2, 1, 8, 8)), ())
    assert {unit.keys[0] for unit in units} == {
        f"{layer}.weight" for layer in ("stem", "grouped", "depthwise", "gate", "alone", "squeeze", "head")
    }
    streams = {unit.keys[0] for unit in units if unit.other is not None}
    assert streams == {"depthwise.weight", "squeeze.weight"}
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    tied[2] = tied[0]
    assert [unit.keys[0] for unit in find_units(Program(tied, torch.rand(2, 4)), ())] == ["3.weight"]


@pytest.mark.parametrize("targets", ["clusters", "matched"])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_times_the_same_parent_gives_the_parent(name, targets):
    loader = images(100)
    model = parent(name, 0, loader)
    child = refitted([model, copy.deepcopy(model)], loader, Ridge(targets=targets, steps=0, augment=False))
    batch = next(iter(loader))[0]
    torch.testing.assert_close(child(batch), model(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [RegMean(), LeastSquares()], ids=["regmean", "least-squares"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_methods_for_comparison_keep_equal_parents_too(name, method):
    loader = images(100)
    model = parent(name, 0, loader)
    child = refitted([model, copy.deepcopy(model)], loader, method)
    batch = next(iter(loader))[0]
    torch.testing.assert_close(child(batch), model(batch), rtol=1e-3, atol=1e-4)


def test_a_permuted_parent_gives_the_same_child():
    loader = images(100)
    first = parent("digits_resnet", 0, loader)
    groups = proved(first)
    state = dict(first.state_dict())
    orders = random_permutations(groups, 3)
    for group in groups.free:
        state = group.permute(state, orders[group.name])
    second = build_network("digits_resnet").eval()
    second.load_state_dict(state)
    result = fuse([first, second], Recipe(refit="ridge"), loader)
    batch = next(iter(loader))[0]
    torch.testing.assert_close(result.child(batch), first(batch), rtol=1e-3, atol=1e-3)
    assert result.seconds["refit"] > 0


@pytest.mark.parametrize("name", ["digits_resnet", "mixed"])
def test_refitting_comes_closer_to_the_ensemble_with_true_statistics(name):
    loader = images(200)
    models = [parent(name, seed, loader) for seed in (0, 1, 2)]
    batch = torch.cat([part for part, _ in loader])
    ensemble = torch.stack([model(batch) for model in models]).mean(0).detach()

    def error(child):
        return float((child(batch) - ensemble).square().mean().detach())

    groups = proved(models[0])
    identity = {group.name: Coupling.identity(group.size) for group in groups.free}
    plain = average(models, groups, [identity] * 3, [1 / 3] * 3)
    reset_batch_norm(plain, loader)
    child = refitted(models, loader)
    assert error(child) < 0.5 * error(plain)
    assert child.state_dict().keys() == models[0].state_dict().keys()
    before = copy.deepcopy(child.state_dict())
    reset_keeping_function(child, loader)
    for key, tensor in child.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(tensor, before[key], rtol=1e-3, atol=1e-3)


def test_a_second_pass_comes_closer_still_and_keeps_true_statistics():
    loader = images(600)
    models = [parent("narrow digits_resnet", seed, loader) for seed in (0, 1)]
    batch = torch.cat([part for part, _ in loader])
    ensemble = ((models[0](batch) + models[1](batch)) / 2).detach()
    centred = ensemble - ensemble.mean(1, keepdim=True)
    errors = []
    for steps in (0, 48):
        child = refitted(models, loader, Ridge(steps=steps, augment=False))
        output = child(batch).detach()
        errors.append(float((output - output.mean(1, keepdim=True) - centred).square().mean()))
    assert errors[1] < 0.9 * errors[0]
    before = copy.deepcopy(child.state_dict())
    reset_keeping_function(child, loader)
    for key, tensor in child.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(tensor, before[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [24, 60, 125])
def test_images_that_would_be_one_batch_are_several_so_that_steps_are_taken(count):
    loader, seen = images(count), []
    network = parent("perceptron", 0, loader)

    def teacher(inputs, _):
        seen.append(inputs)
        return torch.zeros(len(inputs), 4)

    session = Session.towards(network, teacher, loader)
    assert 3 <= len(session.decomposed.loader) <= 8
    session.second_pass(3, Augmentation())
    assert len(seen) > 2  # held-out images, and those of a step


def test_streams_are_pulled_to_the_parents_mixtures():
    """Each stage's stream as much as another, and nothing is too low in front of a ReLU."""
    loader = images(25)
    batch = next(iter(loader))[0]
    models = [parent("digits_resnet", seed, loader) for seed in (0, 1)]
    program = Program(models[0], batch)
    folded = Folded(program, find_units(program, ()))
    states = [model.state_dict() for model in models]
    for shares, child in (((1.0, 0.0), 0), ((0.5, 0.5), 1)):
        streams = Streams(folded.units, Targets(Shares(shares), {}))
        _, values = Teacher.create(folded, states, shares, None).watched(batch, streams.nodes, TEMPERATURE)
        assert len(streams.nodes) == len({node.meta["val"].shape for node in streams.nodes}) > 1
        pulls = streams.pulls(values[child], streams.wanted(values), 0.7)
        counted = []
        for one, two, own, pull in zip(*values, values[child], pulls, strict=True):
            mixture = shares[0] * one.relu() + shares[1] * two.relu()
            error = own.relu() - mixture + torch.where(mixture > 0, own.clamp_max(0.0), 0.0)
            torch.testing.assert_close(pull * error.norm(), error * pull.norm())
            counted.append(float((pull * error).sum()) / 2 / len(batch))
        assert counted == pytest.approx([child * 0.7 * streams.weight / len(pulls)] * len(counted), rel=1e-4)


def test_a_child_of_one_parent_twice_has_nothing_to_learn():
    """Class scores and streams that a refitted child is trained towards are its own, in its own order."""
    loader = images(100)
    model = parent("digits_resnet", 0, loader)
    groups = proved(model)
    orders = random_permutations(groups, 3)
    twin = copy.deepcopy(model)
    twin.load_state_dict(
        apply_couplings(groups, {name: Coupling(order) for name, order in orders.items()}, model.state_dict())
    )
    back = {name: Coupling(order).inverse() for name, order in orders.items()}
    identity = {name: Coupling.identity(len(order)) for name, order in orders.items()}
    child = copy.deepcopy(model)
    session = refit_layers(child, AlignedParents([model, twin], groups, [identity, back], (0.5, 0.5)), loader, SOLVED)
    batch = next(iter(loader))[0]
    logits, wanted = session.teacher(batch, TEMPERATURE)
    torch.testing.assert_close(logits.log_softmax(1), model(batch).detach().log_softmax(1), rtol=1e-4, atol=1e-4)
    folded, state = session.folded, session.decomposed.state
    _, values = folded.run(folded.maps(state), state, batch, session.streams.nodes)
    assert len(wanted) == len(values) > 1
    for value, stream in zip(values, wanted, strict=True):
        torch.testing.assert_close(value.relu(), stream, rtol=1e-3, atol=1e-3)
        assert float(stream.std()) > 0.01
    assert (
        refit_layers(child, AlignedParents([model, twin], groups, [identity] * 2, (0.5, 0.5)), loader, RegMean())
        is None
    )


class Casting(nn.Module):
    """A network that computes part of itself in other types."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(9, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).double().relu().float()).half()


def test_targets_in_bfloat16_are_those_of_a_network_that_casts():
    torch.manual_seed(0)
    network = Casting().eval()
    session = Session.towards(network, lambda *_: torch.randn(25, 4), images(25, (1, 3, 3)), seed=5)
    batch = next(iter(session.decomposed.loader))[0][: session.decomposed.size]
    teacher = Teacher.create(session.folded, [network.state_dict()], (1.0,), None)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, _ = teacher.watched(batch, [], 1.0)
    wanted = network(batch).float().log_softmax(1)
    torch.testing.assert_close(logits.float().log_softmax(1), wanted, atol=0.03, rtol=0.03)


def test_a_natural_gradient_step_is_the_damped_kronecker_solution():
    """Of a network of one layer: the gradient times the inverse of the product of its two factors, written out."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).eval()
    count, target = 100, torch.randn(100, 4)  # of 200 images, which are two batches
    session = Session.towards(layer, lambda *_: target, images(200, (1, 3, 3)), seed=5)
    batch = next(iter(session.decomposed.loader))[0]
    state = session.decomposed.state
    generator = torch.Generator().manual_seed(5)
    learner = NaturalGradient(session.folded, state, session.teacher, session.streams, generator, bfloat16=False)
    before = {key: tensor.clone() for key, tensor in learner.maps.items()}
    with torch.no_grad():
        taught = learner.with_targets([batch])
        learner.begin(learner.loss(taught) / count)
        logits = layer(batch)
        loss, alike = learner.step(taught, 1.0)
    assert float(loss) == pytest.approx(float(divergence(logits, target)), rel=1e-4)
    assert int(alike) == int((logits.argmax(1) == target.argmax(1)).sum())
    rows = torch.cat([batch.flatten(1), torch.ones(count, 1)], 1).double()
    probe = sample(logits, torch.Generator().manual_seed(5)).double()
    factors = [rows.T @ rows / count, probe.T @ probe / count]
    first, second = (
        factor + DAMPING**0.5 * factor.diagonal().mean() * torch.eye(len(factor)).double() for factor in factors
    )
    gradient = rows.T @ slope(logits, target).double() / count
    wanted = -torch.linalg.solve(torch.kron(first, second), gradient.reshape(-1)).reshape(10, 4)
    change = torch.cat(
        [learner.maps["1.weight"] - before["1.weight"], (learner.maps["1.bias"] - before["1.bias"])[:, None]], 1
    )
    taken = change.T.double()
    torch.testing.assert_close(taken / taken.norm(), wanted / wanted.norm(), rtol=1e-3, atol=1e-4)
    # A whole step is as long as the loss that its model says it saves.
    saved = -float((gradient * taken).sum()) / (1 - MOMENTUM)
    length = float(taken.norm() / wanted.norm()) / (1 - MOMENTUM)
    assert saved * length == pytest.approx(Schedule.trust * float(loss) / count, rel=1e-3)


def test_where_no_layer_can_be_moved_that_is_said_and_nothing_is():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
            self.two.weight, self.two.bias = self.one.weight, self.one.bias

        def forward(self, x):
            return self.two(self.one(x.flatten(1)).relu())

    tied, loader = Tied().eval(), images(50)
    before = copy.deepcopy(tied.state_dict())
    session = Session.towards(tied, lambda inputs, _: inputs.flatten(1), loader)
    session.second_pass(4, Augmentation())
    assert all(torch.equal(tensor, before[key]) for key, tensor in tied.state_dict().items())
    with pytest.raises(ArchitectureError, match="no layer"):
        session.training(loader)


def test_the_teacher_sees_the_images_of_every_third_step():
    loader, seen = images(300), []
    network = parent("perceptron", 0, loader)

    def teacher(inputs, _):
        seen.append(inputs)
        return torch.zeros(len(inputs), 4)

    Session.towards(network, teacher, loader).second_pass(48, Augmentation())
    assert len(seen) == 1 + 48 / REUSED  # one for the held-out images


def test_the_same_refit_twice_is_the_same_bit_for_bit():
    loader = images(60)
    models = [parent("digits_resnet", seed, loader) for seed in (0, 1)]
    one, two = (refitted(models, loader, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


# --- bad input ------------------------------------------------------------------------------------


def test_fewer_images_than_inputs_are_said_and_survived():
    loader = images(20)
    models = [parent("perceptron", seed, loader) for seed in (0, 1)]
    with pytest.warns(DepfuseWarning, match="64 inputs, but 20 images"):
        child = refitted(models, loader)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in child.state_dict().values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refit_heads(models, (0.5, 0.5), loader)  # 12 inputs are few enough


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, x):
        x = self.layer(x.flatten(1))
        return x if x.sum() > 0 else -x


def test_what_cannot_be_refitted_is_refused():
    loader = images(20)
    models = [parent("perceptron", seed, loader) for seed in (0, 1)]
    with pytest.raises(RecipeError, match="refit none solves no layers"):
        refitted(models, loader, NoRefit())
    with pytest.raises(RecipeError, match="needs calibration images"):
        fuse(Parents(models, example=torch.rand(1, 1, 8, 8)), Recipe(refit="ridge", criterion="weights"), None)
    with pytest.raises(RecipeError, match="solver emd"):
        fuse(models, Recipe(refit="ridge", solver="sinkhorn"), loader)
    with pytest.raises(ArchitectureError, match="refit none"):
        Program(Branching(), torch.rand(2, 1, 8, 8))


# --- labels ---------------------------------------------------------------------------------------


def test_label_sets_join_heads():
    sets = LabelSets.create([(0, 2), (1, 2)])
    assert sets.joint == (0, 1, 2)
    assert not sets.same
    joined = sets.join([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])], (0.25, 0.75), 1)
    torch.testing.assert_close(joined, torch.tensor([[1.0, 3.0, 3.5]]))
    wide = sets.of_outputs([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])])
    assert wide[0].tolist() == [[1.0, -torch.inf, 2.0]]
    with pytest.raises(RecipeError, match="each of them once"):
        LabelSets.create([(0, 0), (1,)])
    with pytest.raises(RecipeError, match="2 sets of classes for 1 parents"):
        sets.check([nn.Linear(1, 1)], None)


@pytest.mark.parametrize("method", ["none", "ridge", "regmean", "least-squares"])
def test_parents_with_other_labels_get_one_joint_head(method):
    loader = images(60)
    torch.manual_seed(0)
    first = parent("mixed", 0, loader)
    second = copy.deepcopy(first)
    second.head = nn.Linear(8, 2)
    recipe = Recipe(refit=method, joint_head="none")
    result = fuse(Parents([first, second], labels=[(0, 1, 2), (3, 4)], template=Mixed(outputs=5)), recipe, loader)
    batch = next(iter(loader))[0]
    side_by_side = torch.cat([first(batch), second(batch)], 1)
    tolerance = 1e-4 if method == "ridge" else 0.05
    torch.testing.assert_close(result.child(batch), side_by_side, rtol=10 * tolerance, atol=tolerance)
    with pytest.raises(RecipeError, match="template"):
        fuse(Parents([first, second], labels=[(0, 1, 2), (3, 4)]), Recipe(refit="none"), loader)
    with pytest.raises(RecipeError, match="say by `labels` which each of them knows"):
        fuse([first, second], Recipe(refit="none"), loader)


def test_a_parent_with_its_head_refitted_to_the_ensemble():
    loader = images(200)
    models = [parent("digits_resnet", seed, loader) for seed in (0, 1)]
    changed = refit_heads(models, (0.5, 0.5), loader)[1]
    different = [
        key for key, tensor in changed.state_dict().items() if not torch.equal(tensor, models[1].state_dict()[key])
    ]
    heads = [key for key, tensor in changed.state_dict().items() if tensor.shape[:1] == (10,)]
    assert different == heads
    batch = next(iter(loader))[0]
    with torch.no_grad():
        outputs = [model(batch) for model in (*models, changed)]
    errors = [(output - (outputs[0] + outputs[1]) / 2).square().mean() for output in outputs[1:]]
    assert errors[1] < errors[0]


def test_classes_in_an_architecture_string():
    assert with_classes("resnet20(classes=5)", 10) == "resnet20(classes=10)"
    assert with_classes("torchvision:resnet18(num_classes=5, zero_init_residual=True)", 7) == (
        "torchvision:resnet18(num_classes=7, zero_init_residual=True)"
    )
    assert with_classes("digits_resnet", 7) == "digits_resnet"


def test_classes_on_the_command_line(tmp_path, capsys):
    for name, labels in (("low", range(5)), ("high", range(5, 10))):
        card = Card(architecture="digits_resnet(width=0.5)", data="digits", classes=tuple(labels))
        state = build_network("digits_resnet(width=0.5)", classes=5).state_dict()
        write_checkpoint(tmp_path / f"{name}.safetensors", state, card)
    parents = [str(tmp_path / "low.safetensors"), str(tmp_path / "high.safetensors")]
    out, report = tmp_path / "child.safetensors", tmp_path / "report.json"
    command = ["fuse", *parents, "--data", "digits", "--refit", "ridge", "--calibration", "300", "--refit-steps", "8"]
    command += ["--out", str(out)]
    assert main([*command, "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["parents"][0]["accuracy"] <= 0.55
    assert found["parents"][0]["loss"] is None
    assert found["child"]["loss"] > 0
    assert len(found["heads"]) == 2
    assert read_checkpoint(out).card.classes == tuple(range(10))
    assert found["seconds"]["refit"] > 0
    assert main(["eval", str(out), "--data", "digits"]) == 0
    capsys.readouterr()
    assert main([*command, "--classes", "0-4"]) == 2
    assert "once per parent" in capsys.readouterr().err
    assert main([*command, "--classes", "0-4", "--classes", "4-8"]) == 2
    assert "no parent knows label 9" in capsys.readouterr().err


def test_outputs_whose_squares_overflow_are_refused():
    class Enormous(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return 1e30 * self.head(self.body(x).mean((2, 3)))

    recipe = {"refit.steps": 2}
    with pytest.raises(RecipeError, match="too large to be refitted"):
        fuse([Enormous().eval(), Enormous().eval()], recipe, torch.rand(60, 3, 9, 9))
