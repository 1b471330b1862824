"""Merging, renormalising and the whole corridor."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from depfuse import Recipe, find_groups, fuse, naive_average
from depfuse.align import Coupling
from depfuse.data import Loader, Preprocessing, Split, calibration_loader, load_data
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DataError, RecipeError
from depfuse.evaluate import evaluate
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.groups import random_permutations
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into
from depfuse.merge import average
from depfuse.models import build_network
from depfuse.renorm import has_running_statistics, renormalise, reset_batch_norm


def images(count: int, batch_size: int = 25, shape=(1, 8, 8)) -> Loader:
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=batch_size)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("digits_resnet").eval()


def twin(model: nn.Module) -> tuple[nn.Module, dict[str, Coupling]]:
    """The same function with its channels in another order, and the coupling that brings them back."""
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    state = dict(model.state_dict())
    permutations = random_permutations(groups, 3)
    for group in groups.free:
        state = group.permute(state, permutations[group.name])
    other = network(9)
    other.load_state_dict(state)
    return other, {name: Coupling(order).inverse() for name, order in permutations.items()}


def test_a_network_averaged_with_its_aligned_twin_is_itself():
    first = network(0)
    second, coupling = twin(first)
    groups = find_groups(first, torch.zeros(1, 1, 8, 8))
    identity = {group.name: Coupling.identity(group.size) for group in groups.free}
    child = average([first, second], groups, [identity, coupling], (0.3, 0.7))
    for key, tensor in first.state_dict().items():
        torch.testing.assert_close(child.state_dict()[key], tensor, rtol=1e-6, atol=1e-7)
    only_first = average([first, second], groups, [identity, coupling], (1.0, 0.0))
    assert all(torch.equal(only_first.state_dict()[key], tensor) for key, tensor in first.state_dict().items())


def test_an_average_keeps_types_and_whole_numbers():
    first, second = network(0).half(), network(1).half()
    first.get_buffer(next(k for k in first.state_dict() if k.endswith("num_batches_tracked"))).fill_(7)
    groups = find_groups(first, torch.zeros(1, 1, 8, 8))
    child = naive_average([first, second], (0.5, 0.5), groups)
    for key, tensor in child.state_dict().items():
        assert tensor.dtype == first.state_dict()[key].dtype
        if not tensor.is_floating_point():
            assert torch.equal(tensor, first.state_dict()[key])
        else:
            mean = (first.state_dict()[key].double() + second.state_dict()[key].double()) / 2
            torch.testing.assert_close(tensor, mean.half())


# --- renorm ---------------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self, track: bool = True):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.3, track_running_stats=track)
        self.drop, self.second, self.last = nn.Dropout(0.5), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.last(self.second(self.drop(torch.relu(self.norm(self.first(x)))))).mean((2, 3))


def test_reset_is_the_mean_of_batch_statistics_layer_by_layer():
    model, loader = Normed(), images(600, batch_size=20)
    parameters = copy.deepcopy(dict(model.named_parameters()))
    model.train()
    model.drop.eval()
    modes = [module.training for module in model.modules()]
    reset_batch_norm(model, loader)
    assert [module.training for module in model.modules()] == modes
    assert model.norm.momentum == 0.3
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in model.named_parameters())

    def statistics(values):
        return values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=True)

    first, last = [], []
    with torch.no_grad():
        for batch in torch.cat([batch for batch, _ in loader]).split(200):  # three times at most 250 images
            x = model.first(batch)
            first.append(statistics(x))
            x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            x = torch.relu(x * model.norm.weight[:, None, None] + model.norm.bias[:, None, None])
            last.append(statistics(model.second(x)))
    for layer, found in ((model.norm, first), (model.last, last)):
        torch.testing.assert_close(layer.running_mean, torch.stack([mean for mean, _ in found]).mean(0))
        torch.testing.assert_close(layer.running_var, torch.stack([variance for _, variance in found]).mean(0))
        assert int(layer.num_batches_tracked) == 3


def test_reset_repairs_a_scrambled_network_and_spares_others():
    model = network(0)
    loader = images(100, batch_size=100)
    reset_batch_norm(model, loader)
    batch = next(iter(loader))[0]
    expected = model(batch)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(5.0)
            module.running_var.fill_(0.1)
    assert not torch.allclose(model(batch), expected)
    reset_batch_norm(model, loader)
    torch.testing.assert_close(model(batch), expected)
    assert not has_running_statistics(nn.Linear(2, 2))
    untracked = Normed(track=False)
    untracked.last = nn.Identity()
    assert not has_running_statistics(untracked)
    before = copy.deepcopy(untracked.state_dict())
    renormalise(untracked, "auto", loader)
    reset_batch_norm(untracked, loader)
    assert all(torch.equal(tensor, before[key]) for key, tensor in untracked.state_dict().items())
    with pytest.raises(RecipeError, match=r"Normed has no BatchNorm.*choose renorm repair, data-free or none"):
        renormalise(untracked, "reset", loader)


def test_renorm_needs_images_and_a_known_name():
    with pytest.raises(DataError, match="at least 2"):
        reset_batch_norm(network(0), images(1))
    with pytest.raises(RecipeError, match="needs calibration images"):
        renormalise(network(0), "reset", None)
    with pytest.raises(RecipeError, match="not known"):
        renormalise(network(0), "polish", images(4))


# --- fuse -----------------------------------------------------------------------------------------


def test_fusing_twins_gives_the_parent():
    first = network(0)
    reset_batch_norm(first, images(100))
    second, _ = twin(first)
    loader = images(100)
    before = [copy.deepcopy(model.state_dict()) for model in (first, second)]
    steps = []
    result = fuse([first, second], Recipe(refit="none", renorm="none", taps="both"), loader, progress=steps.append)
    batch = next(iter(loader))[0]
    torch.testing.assert_close(result.child(batch), first(batch), rtol=1e-4, atol=1e-5)
    assert steps == ["groups", "align", "merge", "renorm"]
    assert {"groups", "align", "choose", "merge", "renorm"} == set(result.seconds)
    assert result.groups.proof_error <= 1e-9
    for model, state in zip((first, second), before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    moved = result.at((0.2, 0.8))
    torch.testing.assert_close(moved(batch), first(batch), rtol=1e-4, atol=1e-5)


def test_the_same_recipe_gives_the_same_child_bit_for_bit():
    models, loader = [network(0), network(1), network(2)], images(60)
    for recipe in (
        Recipe(refit="none"),
        Recipe(refit="none", criterion="weights"),
        Recipe(refit="none", criterion="mixture", solver="coordinate-descent"),
    ):
        one, two = fuse(models, recipe, loader).child, fuse(models, recipe, loader).child
        assert all(torch.equal(tensor, two.state_dict()[key]) for key, tensor in one.state_dict().items())


def test_disagreement_is_least_for_the_right_alignment():
    first = network(0)
    second, coupling = twin(first)
    groups = find_groups(first, torch.zeros(1, 1, 8, 8))
    judge = EnsembleJudge(Ensemble([first, second], ()), groups, "none", CalibrationSplit.for_matchings(images(50)))
    identity = {group.name: Coupling.identity(group.size) for group in groups.free}
    assert judge(1, coupling) < judge(1, identity)
    assert judge.seconds > 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda models: models[:1], "needs at least two"),
        (
            lambda models: [models[0], build_network("digits_resnet(classes=7)")],
            "say by `labels` which each of them knows",
        ),
        (lambda models: [models[0], build_network("vgg11(in_channels=1)")], "another architecture"),
        (lambda models: [models[0], _with_nan(models[1])], "NaN or infinite"),
    ],
)
def test_parents_that_do_not_go_together(spoil, words):
    with pytest.raises(RecipeError, match=words):
        fuse(spoil([network(0), network(1)]), Recipe(refit="none"), images(10))


def _with_nan(model: nn.Module) -> nn.Module:
    next(model.parameters()).data.view(-1)[0] = float("nan")
    return model


def test_recipes_are_frozen_and_survive_json():
    recipe = Recipe.create(weights=(0.25, 0.75), criterion="mixture")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
    with pytest.raises(RecipeError, match=r"sum to 0\.9"):
        Recipe.create(weights=(0.4, 0.5))
    with pytest.raises(RecipeError, match="colour"):
        Recipe.create(colour="red")
    with pytest.raises(RecipeError, match="2 weights for 3 parents"):
        recipe.shares(3)


@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "least"), [("activations", 0.919), ("weights", 0.909)])
def test_the_real_mnist_pair(shared, criterion, least):
    parents = []
    for number in (1, 2):
        parent = build_network(f"{shared}/models/simplenet.py:simplenet")
        load_into(parent, read_checkpoint(shared / f"checkpoints/mnist-simplenet/example_model_fusion_{number}.dat"))
        parents.append(parent.eval())
    data = load_data(str(shared / "data" / "mnist.npz"))
    test = Loader(data.test, data.preprocessing, batch_size=1000)
    result = fuse(parents, Recipe(refit="none", criterion=criterion), calibration_loader(data, 2000))
    assert evaluate(naive_average(parents, (0.5, 0.5), result.groups), test).accuracy == pytest.approx(0.4716, abs=5e-5)
    assert evaluate(result.child, test).accuracy >= least
