"""`fuse` takes recipes, data and parents in the forms that people have them, and gives one child for all."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from depfuse import FusionResult, Recipe, fuse
from depfuse.data import Loader, Split, load_data
from depfuse.errors import DataError, DepfuseError, DepfuseWarning, RecipeError
from depfuse.fusion.comparison import Comparison
from depfuse.fusion.parents import Parents
from depfuse.fusion.pipeline import match
from depfuse.recipe.presets import preset
from depfuse.teach.distil import Distillation

IMAGES = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
RESET = {"align": {"criterion": "activations", "solver": "emd"}, "refit": "none", "renorm": "reset"}


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()


PARENTS = [small(0), small(1)]


class TwoInputs(nn.Module):
    """An image and a row of numbers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.row, self.head = nn.Linear(4, 5), nn.Linear(11, 2)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.head(torch.cat([self.norm(self.conv(image)).relu().mean((2, 3)), self.row(row).relu()], 1))


def outputs(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(*(inputs or (IMAGES,)))


def child(*arguments: Any, **keywords: Any) -> Tensor:
    return outputs(fuse(PARENTS, *arguments, **keywords).child)


@pytest.fixture(scope="module")
def wanted() -> Tensor:
    return child(Recipe.create(RESET), Loader(Split(IMAGES), batch_size=250))


def test_recipes_in_every_form(wanted: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("align: {criterion: activations, solver: emd}\nrefit: none\nrenorm: reset\n")
    for recipe in (
        RESET,
        {"criterion": "activations", "solver": "emd", "refit": "none", "renorm": "reset"},
        str(file),
        file,
    ):
        assert torch.equal(child(recipe, IMAGES), wanted), recipe
    assert torch.equal(child("fast", IMAGES), child(preset("fast").recipe, IMAGES))


def test_a_mapping_changes_the_preset_that_it_names() -> None:
    result = fuse(PARENTS, {"preset": "git-re-basin", "seed": 5}, IMAGES)
    assert (result.recipe.align.criterion.name, result.recipe.seed) == ("weights", 5)


def test_data_may_stand_in_the_place_of_the_recipe() -> None:
    named = fuse(PARENTS, calibration=IMAGES)
    for data in (IMAGES, DataLoader(TensorDataset(IMAGES), batch_size=60), {"x": IMAGES}):
        assert torch.equal(outputs(fuse(PARENTS, data).child), outputs(named.child))
    assert named.recipe.preset == Recipe().preset


def test_what_is_no_recipe_is_said() -> None:
    with pytest.raises(RecipeError, match="the recipe is a Tensor: give a Recipe, the name of a preset"):
        fuse(PARENTS, IMAGES, IMAGES)
    with pytest.raises(RecipeError, match="did you mean"):
        fuse(PARENTS, "fats", IMAGES)
    with pytest.raises(RecipeError, match="colour"):
        fuse(PARENTS, {"colour": "red"}, IMAGES)


def test_a_file_that_names_parents_is_for_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "whole.yaml"
    file.write_text("parents: [a.pt, b.pt]\nsettings: {refit: none}\n")
    with pytest.raises(RecipeError, match="names parents, which is for the command line"):
        fuse(PARENTS, file, IMAGES)


def test_as_many_samples_are_taken_as_the_recipe_says() -> None:
    recipe = Recipe.create({**RESET, "calibration.images": 20})
    result = fuse(PARENTS, recipe, DataLoader(TensorDataset(IMAGES), batch_size=8))
    assert result.calibration is not None
    assert result.calibration.count == 20
    assert torch.equal(outputs(result.child), child(RESET, IMAGES[:20]))


def test_matching_takes_the_same(wanted: Tensor) -> None:
    found = match(PARENTS, RESET, IMAGES.numpy())
    result = fuse(PARENTS, RESET, IMAGES)
    for one, other in zip(found.couplings, result.couplings, strict=True):
        assert all(torch.equal(one[name].matrix, other[name].matrix) for name in one)


def fused_in(kinds: list[dict[str, torch.dtype]], data: Any = IMAGES) -> FusionResult:
    """Fuse parents whose tensors were converted, by the beginning of their names."""
    parents = [copy.deepcopy(parent) for parent in PARENTS]
    for parent, types in zip(parents, kinds, strict=True):
        for start, kind in types.items():
            for name, module in parent.named_modules():
                if name.startswith(start) and not list(module.children()):
                    module.to(kind)
    return fuse(parents, RESET, data)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_child_has_its_parents_type(wanted: Tensor, kind: torch.dtype) -> None:
    result = fused_in([{"": kind}, {"": kind}])
    tensors = [tensor for tensor in result.child.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in tensors} == {kind}
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 5e-2, torch.float64: 1e-5}[kind]
    torch.testing.assert_close(outputs(result.child.float()), wanted, rtol=0, atol=tolerance)
    again = result.at(result.shares)
    assert next(again.parameters()).dtype == kind
    assert next(result.parents[0].parameters()).dtype == kind


def test_of_several_types_each_tensor_has_that_of_the_first_parent(wanted: Tensor) -> None:
    result = fused_in([{"": torch.float16, "1": torch.float32}, {}])
    types = {key: tensor.dtype for key, tensor in result.child.state_dict().items() if tensor.is_floating_point()}
    assert {types[key] for key in types if key.startswith("1.")} == {torch.float32}
    assert {types[key] for key in types if not key.startswith("1.")} == {torch.float16}
    torch.testing.assert_close(outputs(result.child.float()), wanted, rtol=0, atol=5e-3)


def test_parents_that_were_made_in_inference_mode(wanted: Tensor) -> None:
    with torch.inference_mode():
        parents = [small(seed) for seed in (0, 1)]
        result = fuse(parents, RESET, IMAGES)
    torch.testing.assert_close(outputs(result.child), wanted, rtol=0, atol=1e-6)


def test_a_network_of_two_inputs_is_fused_by_pairs_and_by_a_function() -> None:
    parents = [TwoInputs(seed).eval() for seed in (0, 1)]
    rows = torch.randn(60, 4, dtype=torch.float32)
    loader = DataLoader(TensorDataset(IMAGES, rows), batch_size=20)
    plain = fuse(parents, RESET, loader).child
    named = [{"row": rows[start : start + 20], "image": IMAGES[start : start + 20]} for start in (0, 20, 40)]
    called = fuse(parents, RESET, loader, call=lambda model, batch: model(batch[0], batch[1])).child
    for other in (called, fuse(parents, RESET, named).child):
        torch.testing.assert_close(outputs(other, IMAGES, rows), outputs(plain, IMAGES, rows), rtol=0, atol=1e-6)
    assert not torch.allclose(outputs(plain, IMAGES, rows), outputs(parents[0], IMAGES, rows), atol=1e-3)
    example = fuse(
        Parents(parents, example=(IMAGES[:1], rows[:1])), {"criterion": "weights", "refit": "none", "renorm": "none"}
    )
    assert example.groups.free


@pytest.mark.filterwarnings("ignore:refit ridge did not bring")  # random networks
def test_a_network_of_two_inputs_is_refitted_by_pairs_and_by_a_function() -> None:
    parents = [TwoInputs(seed).eval() for seed in (0, 1)]
    rows = torch.randn(60, 4, dtype=torch.float32)
    named = [{"row": rows, "image": IMAGES}]
    recipe = Recipe(refit={"name": "ridge", "steps": 8, "augment": False})
    plain = fuse(parents, recipe, TensorDataset(IMAGES, rows))
    called = fuse(parents, recipe, named, call=lambda model, batch: model(batch["image"], batch["row"]))
    for other in (called, fuse(parents, recipe, named)):
        assert other.recipe.refit == plain.recipe.refit
        torch.testing.assert_close(outputs(other.child, IMAGES, rows), outputs(plain.child, IMAGES, rows))
    mean = sum(outputs(parent, IMAGES, rows) for parent in parents) / 2
    merged = outputs(fuse(parents, RESET, TensorDataset(IMAGES, rows)).child, IMAGES, rows)
    assert float((outputs(plain.child, IMAGES, rows) - mean).norm()) < 0.8 * float((merged - mean).norm())
    best = fuse(parents, Recipe(goal={"name": "best", "steps": 8, "augment": False}), named)
    assert len(best.family) > 4


def test_a_network_of_tokens_is_fused(tmp_path: Path) -> None:
    def language(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

    tokens = torch.randint(0, 11, (40, 7), generator=torch.Generator().manual_seed(0))
    parents = [language(0), language(1)]
    result = fuse(parents, {"refit": "none"}, tokens)
    assert {group.size for group in result.groups.free} == {6, 8}
    twins = fuse([parents[0], copy.deepcopy(parents[0])], {"refit": "none"}, tokens)
    torch.testing.assert_close(outputs(twins.child, tokens), outputs(parents[0], tokens))


def unusable(kind: str) -> list[nn.Module]:
    parents = [copy.deepcopy(parent) for parent in PARENTS]
    if kind == "meta":
        return [parent.to("meta") for parent in parents]
    if kind == "sparse":
        parents[1][8].weight = nn.Parameter(parents[1][8].weight.detach().to_sparse(), requires_grad=False)
        return parents
    if kind == "script":
        return [torch.jit.trace(parent, IMAGES[:1]) for parent in parents]
    linear = [nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval() for _ in range(2)]
    return [torch.ao.quantization.quantize_dynamic(network, {nn.Linear}) for network in linear]


@pytest.mark.parametrize(
    ("kind", "message"),
    [("meta", "no weights yet"), ("sparse", "sparse"), ("script", "TorchScript"), ("quantised", "quantised")],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_networks_without_plain_weights_are_refused_in_words(kind: str, message: str) -> None:
    data = torch.randn(20, 4, dtype=torch.float32) if kind == "quantised" else IMAGES
    with pytest.raises(DepfuseError, match=message):
        fuse(unusable(kind), {"refit": "none"}, data)


def test_arrays_of_several_kinds(wanted: Tensor) -> None:
    for kind in (np.float64, np.dtype(">f4"), np.dtype(">f8")):
        assert torch.equal(child(RESET, IMAGES.numpy().astype(kind)), wanted)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        (PARENTS[0], "one network is given: give a list of two"),
        (dict(enumerate(PARENTS)), "the parents are a dictionary: give a list"),
        (
            [parent.state_dict() for parent in PARENTS],
            r"parent 1 is an OrderedDict, .*: make the network",
        ),
        ([PARENTS[0], "b.pt"], r"parent 2 is a str, .*: load it by depfuse\.load"),
        ([PARENTS[0], None], r"parent 2 is a NoneType, .*: give the network"),
        (None, "the parents are a NoneType: give a list of two"),
        (set(PARENTS), "the parents are a set: give a list of two"),
        (Parents(None), "the parents are a NoneType: give a list of two"),
        (Parents(PARENTS, template=5), "`template` is an int: give a network of the child's shapes"),
        (Parents(PARENTS, groups=[]), "the groups are a list: give what find_groups found"),
        (Parents(PARENTS, labels=5), "`labels` must be a list for each parent"),
        (Parents(PARENTS, labels=[0, 1]), "`labels` must be a list for each parent"),
    ],
)
def test_what_is_no_list_of_networks_is_one_sentence(parents: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        fuse(parents, {"refit": "none"}, IMAGES)


def test_parents_may_come_one_after_another(wanted: Tensor) -> None:
    assert torch.equal(outputs(fuse((parent for parent in PARENTS), RESET, IMAGES).child), wanted)


def test_inputs_and_labels_in_a_module_list(wanted: Tensor) -> None:
    result = fuse(nn.ModuleList(PARENTS), RESET, (IMAGES, torch.arange(60) % 4))
    assert torch.equal(outputs(result.child), wanted)


def test_labels_may_be_a_list(wanted: Tensor) -> None:
    labels = (torch.arange(60) % 4).tolist()
    result = fuse(PARENTS, RESET, (IMAGES, labels))
    assert torch.equal(outputs(result.child), wanted)
    found = result.comparison((IMAGES, labels))
    assert isinstance(found, Comparison)
    assert found.child == result.comparison((IMAGES, torch.tensor(labels))).child


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.dtype(">i4"), np.uint16, torch.uint8, torch.int16])
def test_labels_may_be_whole_numbers_of_any_kind(kind: Any) -> None:
    whole = torch.arange(60) % 4
    labels = whole.to(kind) if isinstance(kind, torch.dtype) else whole.numpy().astype(kind)
    result = fuse(PARENTS, RESET, IMAGES)
    wanted = result.comparison(IMAGES, whole)
    for found in (result.comparison(IMAGES, labels), result.comparison((IMAGES, labels))):
        assert isinstance(found, Comparison)
        assert found.child == wanted.child
    split = Split(IMAGES, labels if isinstance(kind, torch.dtype) else torch.from_numpy(labels.astype(int)))
    assert result.comparison(Loader(split, batch_size=20)).child == wanted.child


def test_labels_that_are_no_numbers_are_one_sentence() -> None:
    result = fuse(PARENTS, RESET, IMAGES)
    for labels in (["cat"] * 60, [[1], [2, 3]], np.array(["cat"] * 60)):
        with pytest.raises(DataError, match="the labels are no numbers: give a whole number for each sample"):
            result.comparison(IMAGES, labels)


def test_arrays_without_values_are_one_sentence() -> None:
    masked = np.ma.masked_less(IMAGES.numpy(), 0)
    for data, message in ((IMAGES.to("meta"), "meta device"), (masked, "masked entries: fill them")):
        with pytest.raises(DataError, match=message):
            fuse(PARENTS, RESET, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([IMAGES, torch.arange(60) % 4], r"batch 2 of the data has shape \(60,\), and the first \(60, 3, 8, 8\): give"),
        ((IMAGES, torch.arange(7)), r"batch 2 .* inputs and labels of all samples as a pair"),
        (load_data("digits"), r"a DataSet is no data yet: give calibration_loader\(data, 2000\)"),
        (load_data("digits").train, r"a Split is no data yet: give calibration_loader\(data, 2000\)"),
        ("photos/", r"is a name or path, .* give calibration_loader\(load_data\('photos/'\), 2000\)"),
    ],
)
def test_data_that_are_no_batches_are_one_sentence(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fuse(PARENTS, RESET, data)


def test_test_data_that_do_not_fit_are_one_sentence() -> None:
    result = fuse(PARENTS, RESET, IMAGES)
    with pytest.raises(DataError, match="images of shape 1x8x8 do not fit Sequential"):
        result.comparison((IMAGES[:, :1], torch.arange(60) % 4))
    with pytest.raises(DataError, match=r"batch 2 of the data has shape \(5,\)"):
        result.comparison((IMAGES, torch.arange(5)))
    with pytest.raises(DataError, match=r"give Loader\(data\.test, data\.preprocessing\)"):
        result.comparison("photos/")


def test_labels_of_parents_may_be_arrays(wanted: Tensor) -> None:
    parents = Parents(PARENTS, labels=[torch.arange(4), np.arange(4)])
    assert torch.equal(outputs(fuse(parents, RESET, IMAGES).child), wanted)


def test_training_images_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(DataError, match="images of shape 2x8x8 do not fit Sequential"):
        fuse(PARENTS, {**RESET, "train.distil": 1}, IMAGES, training=Distillation(IMAGES[:, :2]))


def test_training_images_that_are_none_are_refused() -> None:
    training: Any = IMAGES
    with pytest.raises(RecipeError, match=r"training is a Tensor: give training=Distillation\(data\)"):
        fuse(PARENTS, {**RESET, "train.distil": 1}, IMAGES, training=training)


def test_augmentation_is_said_where_inputs_are_no_images() -> None:
    rows = torch.randn(40, 2, 9, dtype=torch.float32)
    parents = []
    for seed in range(2):
        torch.manual_seed(seed)
        layers = [nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
        parents.append(nn.Sequential(*layers, nn.Linear(5, 3)).eval())
    with pytest.warns(DepfuseWarning, match=r"calibration\.augment: the calibration data are no images"):
        fuse(parents, {**RESET, "calibration": {"augment": True}}, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DepfuseWarning)
        fuse(parents, RESET, rows)
        fuse(PARENTS, {**RESET, "calibration": {"augment": True}}, IMAGES)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*no images", DepfuseWarning)
        fuse(parents, {"refit": {"name": "ridge", "steps": 2}}, rows)  # whose steps flip images by default


def test_refits_of_inputs_of_several_shapes_are_refused_in_words() -> None:
    for recipe in ({"refit": "ridge"}, "best"):
        with pytest.raises(RecipeError, match="needs samples of one shape"):
            fuse(PARENTS, recipe, [IMAGES[:30], IMAGES[30:, :, :6]])
    assert fuse(PARENTS, "standard", [IMAGES[:30], IMAGES[30:, :, :6]]).recipe.refit.name == "none"
