"""Fisher information by itself, and averages weighted by it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import Coupling
from depfuse.cli import main
from depfuse.data import Loader, Preprocessing, Split
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import ArchitectureError, RecipeError
from depfuse.fusion.parents import Parents
from depfuse.groups import random_permutations
from depfuse.merge import average, fisher_information
from depfuse.models import build_network
from depfuse.renorm import reset_batch_norm

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
EXAMPLE = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def images(count: int, batch_size: int = 16) -> Loader:
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=batch_size)


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(3, 5),
    )  # fmt: skip
    nn.init.normal_(model[6].weight, std=3.0)
    reset_batch_norm(model, images(40))
    return model


def by_hand(model: nn.Module, loader: Loader) -> dict[str, torch.Tensor]:
    """One backward pass per image and class."""
    model = copy.deepcopy(model).eval()
    total = {key: torch.zeros_like(tensor) for key, tensor in model.named_parameters()}
    for x in torch.cat([batch for batch, _ in loader]):
        logits = model(x[None])[0]
        for label, probability in enumerate(logits.softmax(0).detach()):
            model.zero_grad()
            F.log_softmax(model(x[None])[0], 0)[label].backward()
            for key, parameter in model.named_parameters():
                total[key] += probability * parameter.grad.square()
    return {key: tensor / loader.count for key, tensor in total.items()}


def test_it_is_the_mean_square_of_the_derivatives_image_by_image():
    model, loader = tiny(), images(40)
    model.train()
    before = copy.deepcopy(model.state_dict())
    found = fisher_information(model, loader, draws=None)
    expected = by_hand(model, loader)
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor.float(), expected[key], rtol=1e-4, atol=1e-9)
    assert model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    few = fisher_information(model, loader, images=10, draws=None)
    torch.testing.assert_close(few["6.bias"].float(), by_hand(model, loader.first(10))["6.bias"])


def test_random_signs_have_the_expectation():
    model, loader = tiny(), images(40)
    exact = fisher_information(model, loader, draws=None)
    drawn = fisher_information(model, loader, draws=400)
    for key, tensor in exact.items():
        torch.testing.assert_close(drawn[key], tensor, rtol=0.15, atol=0.02 * float(tensor.max()))
    once, again, other = (fisher_information(model, loader, seed=seed)["6.weight"] for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_a_tied_parameter_has_its_whole_information_under_both_names():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[3].weight = model[1].weight
    found = fisher_information(model, images(20), draws=4)
    assert found.keys() == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert torch.equal(found["1.weight"], found["3.weight"])


def test_what_cannot_be_differentiated_image_by_image_is_named():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x.flatten(1))
            return x if x.sum() > 0 else -x

    with pytest.raises(ArchitectureError, match=r"Branching cannot be differentiated.*choose average mean"):
        fisher_information(Branching(), images(4))


def resnet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_network("digits_resnet(width=0.5)").eval()
    reset_batch_norm(model, images(40))
    return model


def test_the_average_is_weighted_entry_by_entry_and_plain_where_nothing_matters():
    parents = [resnet(0), resnet(1)]
    groups = prove_groups(parents[0], find_groups(parents[0], EXAMPLE), EXAMPLE)
    couplings = [{g.name: Coupling.identity(g.size) for g in groups.free}, {}]
    couplings[1] = {name: Coupling(order) for name, order in random_permutations(groups, 0).items()}
    information = [fisher_information(parent, images(40)) for parent in parents]
    for own in information:
        own["layer1.conv1.weight"].zero_()
    shares = (0.3, 0.7)
    child = average(parents, groups, couplings, shares, information=information).state_dict()
    plain = average(parents, groups, couplings, shares).state_dict()
    order = couplings[1]["layer1.conv1"].permutation
    first, second = (parent.state_dict()["layer1.bn1.weight"].double() for parent in parents)
    f, g = (own["layer1.bn1.weight"] for own in information)
    expected = (0.3 * f * first + 0.7 * g[order] * second[order]) / (0.3 * f + 0.7 * g[order])
    torch.testing.assert_close(child["layer1.bn1.weight"].double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(child["layer1.conv1.weight"], plain["layer1.conv1.weight"])
    torch.testing.assert_close(child["bn1.running_var"], plain["bn1.running_var"])
    assert (child["conv1.weight"] - plain["conv1.weight"]).abs().max() > 1e-3


def test_equal_parents_give_the_parent_and_permuted_ones_too():
    model = resnet(0)
    groups = prove_groups(model, find_groups(model, EXAMPLE), EXAMPLE)
    other = copy.deepcopy(model)
    state = model.state_dict()
    for group in groups.free:
        state = group.permute(state, random_permutations(groups, 1)[group.name])
    other.load_state_dict(state)
    result = fuse([model, other], Recipe(refit="none", average="fisher", renorm="none"), images(200))
    assert result.information is not None
    for child in (result.child, result.at((0.2, 0.8))):
        torch.testing.assert_close(child.state_dict(), model.state_dict(), rtol=1e-6, atol=1e-7)


def test_parents_of_different_labels_keep_their_outputs():
    parents = [build_network("digits_resnet(width=0.5, classes=5)").eval() for _ in "ab"]
    sets = LabelSets.create([range(5), range(5, 10)])
    groups = prove_groups(parents[0], find_groups(parents[0], EXAMPLE), EXAMPLE)
    couplings = [{g.name: Coupling.identity(g.size) for g in groups.free}] * 2
    information = [fisher_information(parent, images(20)) for parent in parents]
    template = build_network("digits_resnet(width=0.5)")
    child = average(parents, groups, couplings, (0.5, 0.5), sets, template, information=information)
    assert torch.equal(child.linear.weight, torch.cat([parent.linear.weight for parent in parents]))


def test_refusals():
    with pytest.raises(RecipeError, match="average fisher needs couplings that are permutations, and solver sinkhorn"):
        Recipe.create(average="fisher", solver="sinkhorn")
    with pytest.raises(RecipeError, match="average fisher is for channels that are all merged"):
        Recipe.create(average="fisher", keep_first=1)
    with pytest.raises(RecipeError, match="average fisher needs calibration images, not 0"):
        Recipe.create(average="fisher", calibration=0)
    parents = [resnet(0), resnet(1)]
    with pytest.raises(RecipeError, match="average fisher needs calibration images"):
        fuse(Parents(parents, example=EXAMPLE), Recipe(refit="none", criterion="weights", average="fisher"), None)
    groups = prove_groups(parents[0], find_groups(parents[0], EXAMPLE), EXAMPLE)
    soft = {group.name: Coupling(plan=Coupling.identity(group.size).matrix) for group in groups.free}
    information = [fisher_information(parent, images(10)) for parent in parents]
    with pytest.raises(RecipeError, match="Fisher-weighted averages need couplings that are permutations"):
        average(parents, groups, [soft, soft], (0.5, 0.5), information=information)


def test_a_contradiction_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    paths = [str(CHECKPOINTS / f"digits-{name}.safetensors") for name in "ab"]
    command = ["fuse", *paths, "--out", str(tmp_path / "child.safetensors"), "--average", "fisher", "--refit", "none"]
    assert main([*command, "--solver", "sinkhorn"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
