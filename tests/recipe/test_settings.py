"""What a user sets counts, or is refused: nothing is accepted and then not read."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from digits_parents import digits_parents
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import align
from depfuse.align.solvers import SOLVERS, serving
from depfuse.cli.console import warnings_in_one_line
from depfuse.data import Loader, calibration_loader
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.recipe.presets import names, published, read_settings
from depfuse.recipe.reads import READ, is_read, only_read, why_not_read
from depfuse.teach.distil import Further

DEFAULTS = {name: info.default for name, info in Recipe.model_fields.items()}
OTHER = {
    "distance": "euclidean",
    "taps": "before",
    "mixture": 0.9,
    "regularisation": 0.7,
    "strictness": 9.0,
    "masses": "free",
    "restarts": 2,
    "start": "identity",
    "structure": 0.9,
    "iterations": 3,
}  # another value of every setting that a matching may read


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 10)
    ).eval()


@pytest.fixture(scope="module")
def images(digits) -> Loader:
    return calibration_loader(digits, 60, batch_size=20)


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"mixture": 0.9}, "criterion mixture, not activations"),
        ({"regularisation": 0.5}, "solver sinkhorn or cca, not emd"),
        ({"strictness": 1.0}, "solver unbalanced, not emd"),
        ({"structure": 0.2}, "solver fused-gromov, not emd"),
        ({"restarts": 3}, "criterion weights or mixture, not activations"),
        ({"iterations": 7}, "solver spectral"),
        ({"start": "identity"}, "solver coordinate-descent"),
        ({"masses": "free", "solver": "sinkhorn"}, "not sinkhorn"),
        ({"distance": "pearson", "criterion": "weights"}, "criterion activations or mixture, not weights"),
        ({"taps": "both", "criterion": "weights"}, "criterion activations or mixture, not weights"),
        ({"distance": "pearson", "solver": "cca"}, "not cca"),
        ({"choose": "groups", "criterion": "weights", "solver": "spectral"}, "criterion activations, not weights"),
        ({"targets": "matched", "refit": "none"}, "refit auto or ridge, not none"),
        ({"refit_steps": 20, "refit": "regmean"}, "refit auto or ridge, not regmean"),
        ({"augment": False, "refit": "none"}, "refit auto or ridge, not none"),
        ({"augment": False, "refit_steps": 0}, "refit_steps above 0, not 0"),
        ({"augment_statistics": True, "refit": "ridge"}, "not ridge"),
        ({"augment_statistics": True, "renorm": "none", "refit": "none"}, "not none"),
        ({"learning_rate": 0.1}, "distil above 0, not 0"),
        ({"reference": 2, "universe": True}, "universe False, not True"),
    ],
)
def test_what_nothing_reads_is_refused(settings, needs):
    (first, *_) = settings
    with pytest.raises(RecipeError, match=f"{first} .* would be ignored: it needs ") as error:
        Recipe.create(**settings)
    assert needs in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "mixture", "mixture": 0.9},
        {"solver": "sinkhorn", "regularisation": 0.5},
        {"criterion": "weights", "solver": "ipfp", "start": "activations", "distance": "pearson"},
        {"criterion": "weights", "solver": "ipfp", "start": "fused-gromov", "structure": 0.2},
        {"universe": True, "iterations": 7},
        {"goal": "best", "refit_steps": 4, "targets": "matched"},
        {"distil": 2, "learning_rate": 0.1},
        {"parents_renorm": "reset", "augment_statistics": True, "refit": "ridge"},
        DEFAULTS,
        {**DEFAULTS, "refit": "none", "criterion": "weights", "universe": True},
    ],
)
def test_what_is_read_and_what_has_its_default_is_accepted(settings):
    assert Recipe.create(**settings).settings == {**DEFAULTS, **settings}


@pytest.mark.parametrize(
    ("solver", "criterion"), [(solver, criterion) for criterion in ("activations", "weights", "mixture")
                              for solver in serving(criterion)]
)  # fmt: skip
def test_a_matching_does_not_change_with_what_it_is_said_not_to_read(images, solver, criterion):
    """The table is right: all settings at once that nothing is said to read, past validation."""
    parents = [plain(0), plain(1)]
    groups = prove_groups(parents[0], find_groups(parents[0], torch.zeros(1, 1, 8, 8)), torch.zeros(1, 1, 8, 8))
    bounded = {"iterations": 20, "regularisation": 0.3}
    read = {name: value for name, value in bounded.items() if is_read(name, {**DEFAULTS, "solver": solver})}
    recipe = Recipe(solver=solver, criterion=criterion, **read)
    unread = {name: value for name, value in OTHER.items() if not is_read(name, recipe.settings)}
    assert unread
    other = Recipe.model_construct(**{**recipe.settings, **unread})
    found, again = (align(parents, groups, own, images).couplings[1] for own in (recipe, other))
    for group in groups.free:
        assert torch.equal(found[group.name].matrix, again[group.name].matrix)


def test_every_line_of_the_table_is_of_settings_and_of_values_that_there_are():
    for name, cases in READ.items():
        assert name in DEFAULTS
        assert cases, name
        for case in cases:
            assert case.keys() <= DEFAULTS.keys() - {name}
    assert {name for solver in SOLVERS.values() for name in solver.reads} <= READ.keys()
    settings = {**DEFAULTS, "criterion": "weights"}
    assert why_not_read("distance", settings) == "criterion activations or mixture, not weights"


def test_a_changed_recipe_drops_what_it_leaves_unread_and_refuses_what_is_asked_for():
    recipe = Recipe(solver="sinkhorn", regularisation=0.3, distance="pearson")
    assert recipe.changed(solver="emd") == Recipe(distance="pearson")
    assert recipe.changed(criterion="weights", solver="emd") == Recipe(criterion="weights")
    with pytest.raises(RecipeError, match="strictness"):
        recipe.changed(strictness=2.0)
    with pytest.raises(RecipeError, match="sum to"):
        recipe.changed(weights=(0.5, 0.6))
    assert only_read({"solver": "emd", "start": "ipfp", "distance": "scaled"}, DEFAULTS) == {
        "solver": "emd",
        "distance": "scaled",
    }


@pytest.mark.parametrize("name", names())
def test_no_published_method_sets_what_is_not_read(name):
    assert Recipe.create(**published(name).settings)
    assert published(name).recipe.refit != "auto"


def test_parents_count_from_one_and_older_recipes_are_read_as_they_were_meant(tmp_path: Path):
    recipe = Recipe(reference=2, order=3)
    assert (recipe.target, recipe.kept) == (1, 2)
    assert (Recipe().target, Recipe().kept) == (0, 0)
    with pytest.raises(RecipeError, match="greater than or equal to 1"):
        Recipe.create(reference=0)
    file = tmp_path / "report.json"
    for stored in (recipe.model_dump(mode="json"), {**recipe.model_dump(mode="json", exclude={"parents_from"})}):
        file.write_text(json.dumps({"recipe": stored, "seconds": 1.0}))
        read = Recipe.create(**read_settings(str(file)))
        older = "parents_from" not in stored
        assert (read.reference, read.order) == ((3, 4) if older else (2, 3))
    # Settings that were ignored then are left out; what a hand writes is new.
    file.write_text(json.dumps({"recipe": {**stored, "criterion": "weights", "distance": "scaled"}, "seconds": 1.0}))
    assert Recipe.create(**read_settings(str(file))).distance == "best"
    file.write_text(json.dumps({"reference": 2}))
    assert Recipe.create(**read_settings(str(file))).reference == 2
    file.write_text(json.dumps({"criterion": "weights", "distance": "scaled"}))
    with pytest.raises(RecipeError, match="distance scaled would be ignored"):
        read_settings(str(file))


def test_images_to_train_on_come_without_a_recipe(digits):
    with pytest.raises(TypeError):
        Further(digits, Recipe(distil=1))


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((0.9, 0.9), "sum to 1"),
        ((1.5, -0.5), "not negative"),
        (0.3, "no sequence of numbers"),
        ({0: 0.3, 1: 0.7}, "no sequence of numbers"),
        ({0.3, 0.7}, "no sequence of numbers"),
    ],
)
def test_shares_of_another_child_are_checked(images, shares, words):
    result = fuse([plain(0), plain(1)], Recipe(refit="none"), images)
    with pytest.raises(RecipeError, match=words):
        result.at(shares)


@pytest.mark.parametrize(
    "text",
    [
        '{"solver": "sinkhorn", "regularisation": 1e999}',
        '{"learning_rate": 1e999, "distil": 1}',
        '{"seed": 18446744073709551616}',
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(RecipeError, match=r"setting (regularisation|learning_rate|seed): Input should be"):
        read_settings(str(tmp_path / "own.json"))
    assert Recipe(seed=2**63 - 1).seed == 2**63 - 1


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")  # of steps that are not kept
@pytest.mark.parametrize(
    "settings",
    [
        {"refit": "none"},
        {"refit_steps": 2},
        {"criterion": "weights", "refit": "none", "order": 2},
        {"universe": True, "refit": "none"},
        {"solver": "cca", "regularisation": 1.0},
        {"joint_head": "always", "refit": "none", "parents_renorm": "reset"},
    ],
)
def test_the_recipe_of_a_result_leaves_nothing_open_and_gives_the_child_again(digits, settings):
    parents, calibration = digits_parents(*"ab"), calibration_loader(digits, 100)
    result = fuse(parents, Recipe(**settings), calibration)
    made = result.recipe
    assert "auto" not in made.model_dump().values()
    assert made.distance != "best" or not is_read("distance", made.settings)
    assert None not in {made.weights, made.order} | ({made.reference} if not made.universe else set())
    again = fuse(parents, Recipe(**json.loads(made.model_dump_json())), calibration)
    assert again.recipe == made
    assert same(again.child, result.child)
    assert same(result.at(result.shares), result.child)
    assert list(result.parents) == parents


@pytest.mark.parametrize("settings", [{}, {"goal": "best"}])
def test_recipes_of_before_that_end_as_today_are_read(settings):
    polished = settings.get("goal") == "best"  # as a result of before said it
    assert Recipe(**settings, polish=None) == Recipe(**settings, polish=polished) == Recipe(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"polish": True}, "refit ridge gains more"), ({"goal": "best", "polish": False}, "leave out polish")],
)
def test_recipes_of_before_that_end_otherwise_are_refused(settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Recipe.create(**settings)


def test_no_shares_describe_the_best_of_a_family(digits):
    recipe = Recipe(goal="best", refit_steps=0, distance="scaled", joint_head="none")
    result = fuse(digits_parents(*"ab"), recipe, calibration_loader(digits, 80))
    with pytest.raises(RecipeError, match="best of several candidates"):
        result.at(result.shares)


@pytest.mark.parametrize(("name", "value"), [("refit_steps", 9), ("targets", "matched"), ("augment", False)])
def test_settings_of_a_refit_that_is_not_made_are_refused(images, name, value):
    recipe = Recipe(**{name: value, "solver": "sinkhorn"})
    with pytest.raises(RecipeError, match=f"{name} {value} would be ignored: refit auto is none here: solver sinkhorn"):
        fuse([plain(0), plain(1)], recipe, images)


@pytest.mark.parametrize(("name", "value"), [("masses", "free"), ("width_of", 2)])
def test_settings_of_widths_are_refused_for_parents_of_one(images, name, value):
    with pytest.raises(RecipeError, match=f"{name} {value} would be ignored: the parents have one width"):
        fuse([plain(0), plain(1)], Recipe(**{name: value}), images)


def test_an_error_filter_of_the_user_fires_when_a_warning_is_given(capsys, monkeypatch):
    def warn() -> None:
        warnings.warn("the channels are few", DepfuseWarning, stacklevel=2)

    with warnings_in_one_line():
        warn()
        warn()
    assert capsys.readouterr().err == "depfuse: warning: the channels are few\n"
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with warnings_in_one_line(), pytest.raises(DepfuseWarning):
            warn()
