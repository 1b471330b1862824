"""The parents' shares by stage and by channel group: applied to the right layers, chosen on images held out."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import Coupling, apply_couplings
from depfuse.cli import main
from depfuse.data import Loader, Preprocessing, Split, calibration_loader
from depfuse.ensemble.distance import SCALES
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.choose_shares import _divided, choose_shares
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.fusion.parents import Parents
from depfuse.groups.partition import parts_by_group, parts_by_stage
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into
from depfuse.merge import AlignedParents, Shares, average
from depfuse.models import build_network
from depfuse.recipe.refits import LeastSquares, RegMean, Ridge
from depfuse.refit import refit_layers
from depfuse.refit.layerwise.targets import Targets
from depfuse.refit.program.graph import Program
from depfuse.refit.program.units import feeding, find_units
from depfuse.renorm import repair, reset_batch_norm

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
EXAMPLE = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def images(count: int = 60) -> Loader:
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return Loader(Split(pixels, torch.arange(count) % 10), Preprocessing(), batch_size=30)


def network(seed: int, arch: str = "digits_resnet(width=0.5)", loader: Loader | None = None) -> nn.Module:
    torch.manual_seed(seed)
    model = build_network(arch)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    reset_batch_norm(model, loader or images())
    return model.eval()


def proved(model: nn.Module):
    return prove_groups(model, find_groups(model, EXAMPLE), EXAMPLE)


def identity(groups, parents: int = 2):
    return [{group.name: Coupling.identity(group.size) for group in groups.free}] * parents


def same(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), **({"rtol": 0, "atol": 0} | tolerance))


# --- shares and parts ------------------------------------------------------------------------------


def test_a_tensor_has_the_shares_of_its_part():
    shares = Shares.of_parts((0.5, 0.5), {"a.weight": "stage 1", "b.weight": "stage 2"}).having("stage 2", (0.0, 1.0))
    assert shares.of("a.weight") == (0.5, 0.5)
    assert shares.of("b.weight") == (0.0, 1.0)
    assert shares.of("c.weight") == (0.5, 0.5)
    assert Shares.create(shares) is shares
    assert Shares.create([1.0, 0.0]).of("a.weight") == (1.0, 0.0)
    assert not Shares.create([1.0, 0.0]).count(1)
    assert Shares((1.0, 0.0), {"x": (0.5, 0.5)}).count(1)


def test_shares_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="stage 1 has 3 shares for 2 parents"):
        Shares((0.5, 0.5), {"stage 1": (0.2, 0.3, 0.5)})
    with pytest.raises(RecipeError, match="must sum to 1"):
        Shares((0.5, 0.5), {"stage 1": (0.2, 0.3)})
    model = network(0)
    with pytest.raises(RecipeError, match="3 weights for 2 parents"):
        fuse([model, network(1)], Recipe(refit="none"), images()).at((0.2, 0.3, 0.5))


def test_parts_are_stages_or_what_writes_to_a_group():
    model = network(0)
    stages = parts_by_stage(model, EXAMPLE)
    assert stages.keys() == model.state_dict().keys()
    assert {stages[key] for key in stages if key.startswith(("conv1", "bn1", "layer1"))} == {"stage 1"}
    assert {stages[key] for key in stages if key.startswith(("layer2", "linear"))} == {"stage 2"}
    groups = parts_by_group(model, proved(model))
    assert groups["conv1.weight"] == groups["layer1.bn2.running_var"] == groups["layer1.conv2.weight"] == "conv1"
    assert groups["layer2.conv2.weight"] == groups["layer2.shortcut.1.bias"] == "layer2.conv2"
    assert groups["linear.weight"] == groups["linear.bias"] == "linear"


def test_padded_shortcuts_belong_to_the_stage_that_adds_to_them():
    model = build_network('cifar_resnet20(shortcut="A")').eval()
    found = parts_by_group(model, find_groups(model, torch.rand(1, 3, 32, 32)))
    assert [found[f"layer{stage}.2.conv2.weight"] for stage in (1, 2, 3)] == [
        "conv1",
        "layer2.0.conv2",
        "layer3.0.conv2",
    ]
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert found[f"{name}.weight"] == found[f"{name.replace('bn', 'conv')}.weight"]


def test_a_network_without_positions_has_a_stage_for_each_layer_with_its_norm():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    ).eval()
    model[6].weight = nn.Parameter(model[6].weight.detach())
    found = parts_by_stage(model, EXAMPLE)
    assert [found[key] for key in ("1.weight", "1.bias", "2.weight", "2.running_mean", "4.weight", "6.bias")] == [
        "stage 1", "stage 1", "stage 1", "stage 1", "stage 2", "stage 3",
    ]  # fmt: skip


def test_a_tied_tensor_belongs_to_one_part():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    model[3].weight = model[1].weight
    found = parts_by_stage(model, EXAMPLE)
    assert found["3.weight"] == found["1.weight"] == "stage 1"
    assert found["3.bias"] == "stage 2"


# --- applied to the right layers -------------------------------------------------------------------


@pytest.mark.parametrize("by", ["stage", "group"])
def test_the_average_is_that_by_hand(by):
    parents = [network(0), network(1)]
    result = fuse(parents, Recipe(refit="none", renorm="none"), images())
    parts = parts_by_stage(parents[0], EXAMPLE) if by == "stage" else parts_by_group(parents[0], result.groups)
    shares = Shares.of_parts((0.5, 0.5), parts)
    for number, part in enumerate(shares.parts):
        shares = shares.having(part, (0.25 * number, 1 - 0.25 * number))
    assert len({*shares.parts.values()}) > 1
    child = result.at(shares).state_dict()
    states = [apply_couplings(result.groups, c, m.state_dict()) for c, m in zip(result.couplings, parents, strict=True)]
    for key, tensor in child.items():
        if tensor.is_floating_point():
            first, second = shares.parts[parts[key]]
            torch.testing.assert_close(tensor, first * states[0][key] + second * states[1][key])


@pytest.mark.parametrize(
    ("settings", "by"),
    [(Ridge(targets="matched", steps=2, augment=False), "group"), (RegMean(), "stage")],
    ids=["ridge", "regmean"],
)
def test_shares_of_equal_parents_change_nothing(settings, by):
    loader = images(100)
    model = network(0, loader=loader)
    groups = proved(model)
    parts = parts_by_stage(model, EXAMPLE) if by == "stage" else parts_by_group(model, groups)
    shares = Shares.of_parts((0.5, 0.5), parts)
    for number, part in enumerate(shares.parts):
        shares = shares.having(part, (number % 3 / 2, 1 - number % 3 / 2))
    parents = [model, copy.deepcopy(model)]
    children = []
    for own in (shares, Shares((0.5, 0.5))):
        children.append(average(parents, groups, identity(groups), own))
        same(children[-1], model)
        refit_layers(children[-1], AlignedParents(parents, groups, identity(groups), own), loader, settings)
    x = next(iter(loader))[0]
    with torch.no_grad():
        torch.testing.assert_close(children[0](x), children[1](x), rtol=1e-3, atol=1e-2)
        if isinstance(settings, Ridge):
            torch.testing.assert_close(children[0](x), model(x), rtol=1e-2, atol=2e-2)


def test_a_parent_that_has_all_of_every_part_is_refitted_to():
    loader = images(100)
    parents = [network(seed, loader=loader) for seed in (0, 1)]
    groups = proved(parents[0])
    shares = Shares.of_parts((0.5, 0.5), parts_by_stage(parents[0], EXAMPLE))
    for part in shares.parts:
        shares = shares.having(part, (0.0, 1.0))
    child = average(parents, groups, identity(groups), shares)
    same(child, parents[1])
    refit_layers(
        child, AlignedParents(parents, groups, identity(groups), shares), loader, Ridge(steps=0, augment=False)
    )
    x = next(iter(loader))[0]
    with torch.no_grad():
        torch.testing.assert_close(child(x), parents[1](x), rtol=1e-2, atol=2e-2)


def test_a_unit_aims_at_the_mixture_by_its_own_shares():
    model = network(0)
    program = Program(model, EXAMPLE)
    units = find_units(program, ())
    shares = Shares.of_parts((0.5, 0.5), parts_by_stage(model, EXAMPLE)).having("stage 2", (0.25, 0.75))
    targets = Targets(shares, {})
    first, second = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    for unit in units:
        share = 0.5 if unit.keys[0].startswith(("conv1", "layer1")) else 0.25
        torch.testing.assert_close(targets.mixed(unit, [first, second]), share * first + (1 - share) * second)
    added = [unit for unit in units if unit.other is not None]
    assert {unit.keys[0].partition(".")[0] for unit in added} == {"layer1", "layer2"}
    names = {unit.keys[0]: unit for unit in units}
    assert feeding(names["conv1.weight"], units) is None
    assert feeding(names["layer2.conv1.weight"], units) is names["layer1.conv2.weight"]
    assert feeding(names["layer2.conv2.weight"], units) is names["layer2.conv1.weight"]


def test_least_squares_takes_inputs_by_the_shares_of_the_layer_before():
    def perceptron(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4)).eval()

    parents, loader = [perceptron(0), perceptron(1)], images(300)
    groups = proved(parents[0])
    shares = Shares.of_parts((0.5, 0.5), parts_by_stage(parents[0], EXAMPLE))
    shares = shares.having("stage 1", (1.0, 0.0)).having("stage 2", (0.0, 1.0))
    child = average(parents, groups, identity(groups), shares)
    refit_layers(child, AlignedParents(parents, groups, identity(groups), shares), loader, LeastSquares())
    x = torch.cat([batch for batch, _ in loader])
    with torch.no_grad():
        given, wanted = F.relu(parents[0][1](x.flatten(1))).double(), parents[1](x).double()
        known = torch.cat([given, torch.ones_like(given[:, :1])], 1)
        best = (known @ torch.linalg.lstsq(known, wanted).solution - wanted).square().mean()
        assert float((child(x) - wanted).square().mean()) < 1.05 * float(best)


def test_repair_gives_each_layer_the_statistics_of_its_shares():
    loader = images(100)
    parents = [network(seed, loader=loader) for seed in (0, 1)]
    groups = proved(parents[0])
    shares = Shares.of_parts((0.5, 0.5), parts_by_group(parents[0], groups)).having("layer1.conv1", (0.0, 1.0))
    child = average(parents, groups, identity(groups), shares)
    repair(child, AlignedParents(parents, groups, identity(groups), shares), loader)
    assert torch.equal(child.layer1.conv1.weight, parents[1].layer1.conv1.weight)
    seen: list[torch.Tensor] = []
    for model in (child, *parents):
        handle = model.layer1.bn1.register_forward_hook(lambda _m, _i, output: seen.append(output))
        model(torch.cat([batch for batch, _ in loader]))
        handle.remove()
    means = [output.mean((0, 2, 3)) for output in seen]
    torch.testing.assert_close(means[0], means[2], rtol=1e-2, atol=1e-2)
    assert (means[0] - means[1]).abs().max() > 0.1


def test_outputs_of_different_labels_are_joined_by_their_own_shares():
    template = network(5)
    parents = [build_network("digits_resnet(width=0.5, classes=6)").eval() for _ in "ab"]
    sets = LabelSets.create([range(6), range(4, 10)])
    groups = proved(parents[0])
    shares = Shares.of_parts((0.5, 0.5), parts_by_group(parents[0], groups)).having("linear", (0.25, 0.75))
    child = average(parents, groups, identity(groups), shares, sets, template)
    first, second = (parent.linear.weight for parent in parents)
    torch.testing.assert_close(child.linear.weight[4:6], 0.25 * first[4:] + 0.75 * second[:2])
    assert torch.equal(child.linear.weight[:4], first[:4])
    torch.testing.assert_close(child.conv1.weight, (parents[0].conv1.weight + parents[1].conv1.weight) / 2)


# --- chosen ----------------------------------------------------------------------------------------


def test_shares_are_divided_anew_between_two_parents():
    assert set(_divided((0.5, 0.5), (0, 1))) == {(0.0, 1.0), (0.25, 0.75), (0.75, 0.25), (1.0, 0.0)}
    assert all(sum(own) == pytest.approx(1) and own[1] == 0.5 for own in _divided((0.25, 0.5, 0.25), (0, 2)))
    assert not list(_divided((0.0, 1.0, 0.0), (0, 2)))


def test_the_choice_finds_the_least_where_parts_do_not_depend_on_each_other():
    wanted = {"x": (0.0, 0.25, 0.75), "y": (1.0, 0.0, 0.0), "z": (0.0, 0.5, 0.5)}
    seen: list[Shares] = []

    def loss(shares: Shares) -> float:
        seen.append(shares)
        return sum((a - b) ** 2 for part in wanted for a, b in zip(shares.parts[part], wanted[part], strict=True))

    start = Shares.of_parts((0.5, 0.25, 0.25), {"1": "x", "2": "y", "3": "z"})
    found = choose_shares(start, loss)
    assert found.before == loss(start)
    assert found.after == loss(found.shares) == min(loss(shares) for shares in seen[:])
    assert found.shares.parts["y"] == wanted["y"]
    assert found.after < 0.1
    assert choose_shares(Shares.create((0.5, 0.5)), lambda _: 1.0).after == 1.0


def test_the_images_to_judge_by_are_held_out():
    loader = images(40)
    split = CalibrationSplit.for_shares(loader, 0)
    seen, judged = split.statistics, split.judging
    assert torch.equal(torch.cat([seen.images, judged.images]), loader.images)
    assert seen.count == judged.count == 20
    split = CalibrationSplit.for_shares(loader, 30)
    seen, judged = split.statistics, split.judging
    assert torch.equal(judged.labels, loader.labels[:30])
    assert torch.equal(seen.images, loader.images[30:])
    assert CalibrationSplit.for_shares(loader, 40).statistics.count == 40


@pytest.fixture(scope="module")
def parents_of_digits():
    found = []
    for name in ("digits-same-a", "digits-same-b"):
        checkpoint = read_checkpoint(CHECKPOINTS / f"{name}.safetensors")
        assert checkpoint.card is not None
        model = build_network(checkpoint.card.architecture)
        load_into(model, checkpoint)
        found.append(model.eval())
    return found


def test_a_destroyed_stage_is_left_to_the_other_parent(parents_of_digits, digits):
    whole = parents_of_digits[0]
    broken = copy.deepcopy(whole)
    with torch.no_grad():
        for name, parameter in broken.named_parameters():
            if name.startswith("layer2") and parameter.dim() > 1:
                parameter.copy_(4 * parameter.std() * torch.randn_like(parameter))
    calibration = calibration_loader(digits, 300)
    reset_batch_norm(broken, calibration)
    recipe = Recipe(refit="none", criterion="weights", restarts=1, weights_by="stage")
    result = fuse(Parents([broken, whole], groups=proved(whole)), recipe, calibration)
    assert result.chosen_shares is not None
    assert result.shares.network == (0.5, 0.5)
    assert result.shares.parts["stage 2"] == (0.0, 1.0)
    assert result.chosen_shares.after < result.chosen_shares.before
    assert result.seconds["shares"] > 0
    same(result.child, result.at(result.shares))
    split = CalibrationSplit.for_shares(calibration, 100)
    judge = EnsembleJudge(Ensemble(result.averaged, ()), result.groups, "reset", split, labelled=True)

    def loss(shares: Shares) -> float:
        return judge.of_child(average(result.averaged, result.groups, result.couplings, shares), (0.5, 0.5))

    by_labels = choose_shares(Shares.of_parts((0.5, 0.5), result.shares.part_of), loss)
    assert by_labels.shares.parts["stage 2"] == (0.0, 1.0)
    assert by_labels.after < 0.1 < by_labels.before


@pytest.mark.parametrize(
    "options",
    [
        {"weights_by": "group"},
        {"weights_by": "stage", "average": "fisher"},
        {"weights_by": "stage", "labelled": 30},
        {"weights_by": "stage", "keep_worst": 0.25, "weights": (0.5, 0.25, 0.25)},
        {"weights_by": "stage", "universe": True, "renorm": "repair"},
    ],
)
def test_the_choice_is_no_worse_on_its_own_images(options):
    parents = [network(seed) for seed in range(len(options.get("weights", "ab")))]
    result = fuse(parents, Recipe(refit="none", distance="cosine", calibration=60, **options), images())
    assert result.chosen_shares is not None
    assert result.chosen_shares.after <= result.chosen_shares.before
    assert all(sum(own) == pytest.approx(1) for own in result.shares.parts.values())
    if options["weights_by"] == "group":
        assert set(result.shares.parts) == set(parts_by_group(result.child, result.groups).values())


def test_with_labels_it_is_the_loss_on_them_at_the_best_scale():
    parents = [network(0), network(1)]
    judge = EnsembleJudge(
        Ensemble(parents, ()), proved(parents[0]), "none", CalibrationSplit(images(), images(40)), labelled=True
    )
    with torch.no_grad():
        scores = torch.cat([parents[0](x) for x, _ in images(40)])
    expected = min(float(F.cross_entropy(scale * scores, images(40).labels)) for scale in SCALES)
    assert judge.of_child(parents[0], (0.5, 0.5)) == pytest.approx(expected, rel=1e-5)


# --- the command line ------------------------------------------------------------------------------


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    paths = [str(CHECKPOINTS / f"digits-{name}.safetensors") for name in "ab"]
    report = tmp_path / "report.json"
    command = ["fuse", *paths, "--out", str(tmp_path / "child.safetensors"), "--calibration", "200"]
    command += ["--distance", "cosine", "--refit", "none"]
    assert main([*command, "--weights-by", "stage", "--average", "fisher", "--report", str(report)]) == 0
    out = capsys.readouterr().out
    assert "stage 2" in out
    found = json.loads(report.read_text())
    merge = found["recipe"]["merge"]
    assert (merge["weights_by"], merge["average"]) == ("stage", "fisher")
    assert set(found["shares"]["parts"]) == {"stage 1", "stage 2"}
    assert found["shares"]["loss_after"] <= found["shares"]["loss_before"]
    assert found["seconds"]["shares"] > 0
    assert main([*command, "-q", "--weights-by", "stage", "--plot", str(tmp_path / "path.png")]) == 2
    assert "leave out merge.weights_by, or the path" in capsys.readouterr().err
    assert main([*command, "-q", "--weights-by", "layer"]) == 2
    assert "weights_by" in capsys.readouterr().err
    assert main([*command[:-4], "-q", "--weights-by", "group", "--calibration", "3"]) == 2
    assert "weights_by group needs at least 4 calibration images, not 3" in capsys.readouterr().err


def test_the_choice_needs_images():
    model = network(0)
    with pytest.raises(RecipeError, match="weights_by stage needs calibration images"):
        fuse(
            Parents([model, network(1)], example=EXAMPLE),
            Recipe(refit="none", criterion="weights", weights_by="stage"),
            None,
        )
