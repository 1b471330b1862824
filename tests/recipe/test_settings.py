"""What a user sets counts, or is refused: nothing is accepted and then not read."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from digits_parents import digits_parents, small_parents
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import align
from depfuse.cli.console import warnings_in_one_line
from depfuse.data import Loader, calibration_loader
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.recipe.arrange import by_path, known_places
from depfuse.recipe.fields import Section
from depfuse.recipe.old_names import OLD
from depfuse.recipe.presets import preset, published, read_settings
from depfuse.recipe.reads import Above, cases_of, is_read, unmet
from depfuse.recipe.solvers import serving
from depfuse.teach.distil import Distillation

DEFAULTS = {
    name: None if value is None else value.name if hasattr(value, "name") else value
    for name, paths in OLD.items()
    for value in [known_places(Recipe)[paths[0]][0].default]
} | {"universe": False}
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
        ({"augment": False, "refit_steps": 0}, "refit.steps above 0, not 0"),
        ({"augment_statistics": True, "refit": "ridge"}, "not ridge"),
        ({"augment_statistics": True, "renorm": "none", "refit": "none"}, "not none"),
        ({"learning_rate": 0.1}, "distil above 0, not 0"),
        ({"reference": 2, "universe": True}, "align.through reference, not universe"),
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
    recipe = Recipe.create(**settings)
    for path, value in by_path(settings).items():
        assert not is_read(path, recipe.settings) or recipe.settings[path] == value


def written(section: Section, path: list[str], value: object) -> Section:
    """A copy with another value, as no validation would let it pass."""
    first, *rest = path
    own = written(getattr(section, first), rest, value) if rest else value
    return section.model_copy(update={first: own})


@pytest.mark.parametrize(
    ("solver", "criterion"), [(solver, criterion) for criterion in ("activations", "weights", "mixture")
                              for solver in serving(criterion)]
)  # fmt: skip
def test_a_matching_does_not_change_with_what_it_is_said_not_to_read(images, solver, criterion):
    """The table is right: all settings at once that nothing is said to read, past validation."""
    parents = [plain(0), plain(1)]
    groups = prove_groups(parents[0], find_groups(parents[0], torch.zeros(1, 1, 8, 8)), torch.zeros(1, 1, 8, 8))
    bounded = by_path({"iterations": 20, "regularisation": 0.3})
    recipe = Recipe.with_read({"align.solver": solver, "align.criterion": criterion, **bounded})
    unread = {path: value for path, value in by_path(OTHER).items() if not is_read(path, recipe.settings)}
    assert unread
    other = recipe
    for path, value in unread.items():  # past validation
        if path in recipe.settings and path != "align.solver.start":
            other = other.model_copy(update={"align": written(other.align, path.split(".")[1:], value)})
    found, again = (align(parents, groups, own.align, images).couplings[1] for own in (recipe, other))
    for group in groups.free:
        assert torch.equal(found[group.name].matrix, again[group.name].matrix)


def test_every_line_of_the_tables_is_of_settings_and_of_values_that_there_are():
    known = known_places(Recipe)
    for path, places in known.items():
        assert path == path.strip()
        for case in cases_of(path):
            assert case.keys() <= known.keys() - {path}
            for other, allowed in case.items():
                choices = known[other][0].choices
                assert isinstance(allowed, Above) or set(allowed) <= set(choices), (path, other)
        assert all(place.field.description for place in places), path
    for name, paths in OLD.items():
        assert set(paths) <= known.keys(), name
    values = Recipe(criterion="weights").settings
    assert unmet([{"align.criterion": ("activations",)}], values) == "align.criterion activations, not weights"


def test_a_changed_recipe_drops_what_it_leaves_unread_and_refuses_what_is_asked_for():
    recipe = Recipe(solver="sinkhorn", regularisation=0.3, distance="pearson")
    assert recipe.changed(solver="emd") == Recipe(distance="pearson")
    assert recipe.changed({"align.criterion": "weights", "align.solver": "emd"}) == Recipe(criterion="weights")
    with pytest.raises(RecipeError, match="strictness"):
        recipe.changed(strictness=2.0)
    with pytest.raises(RecipeError, match="sum to"):
        recipe.changed(weights=(0.5, 0.6))
    assert Recipe.with_read({"solver": "emd", "start": "ipfp", "distance": "scaled"}) == Recipe(distance="scaled")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"solver": "sinkhorn", "regularisation": 0.1},
            {"align": {"solver": {"name": "sinkhorn", "regularisation": 0.1}}},
        ),
        ({"refit_steps": 80}, {"refit": {"name": "auto", "steps": 80}}),
        ({"goal": "best", "refit_steps": 8}, {"goal": {"name": "best", "steps": 8}}),
        ({"universe": True, "restarts": 2}, {"align": {"through": {"name": "universe", "restarts": 2}}}),
        ({"calibration": 64, "batch_size": 8}, {"calibration": {"images": 64, "batch_size": 8}}),
        (
            {"criterion": "weights", "solver": "ipfp", "start": "fused-gromov", "iterations": 9, "structure": 0.2},
            {
                "align": {
                    "criterion": "weights",
                    "solver": {
                        "name": "ipfp",
                        "iterations": 9,
                        "start": {"name": "fused-gromov", "iterations": 9, "structure": 0.2},
                    },
                }
            },
        ),
        (
            {"polish": None, "parents_from": 0, "reference": 1},
            {"align": {"through": {"name": "reference", "parent": 2}}},
        ),
    ],
)
def test_old_names_stand_in_their_sections(old, new):
    assert Recipe(**old) == Recipe(**new)
    assert Recipe(**json.loads(Recipe(**new).model_dump_json())) == Recipe(**old)


def test_a_setting_of_another_alternative_cannot_be_written_even_as_it_is_by_default():
    with pytest.raises(RecipeError, match=r"it needs align.solver sinkhorn or cca, not emd"):
        Recipe.create({"align.solver.regularisation": 0.01})
    with pytest.raises(RecipeError, match=r"no setting 'align.solver.regularization': did you mean align.solver.regul"):
        Recipe.create({"align.solver.regularization": 0.01})


@pytest.mark.parametrize("name", published())
def test_no_published_method_sets_what_is_not_read(name):
    assert Recipe.create(**preset(name).settings)
    assert preset(name).recipe.refit.name != "auto"


def test_parents_count_from_one_and_older_recipes_are_read_as_they_were_meant(tmp_path: Path):
    recipe = Recipe(reference=2, order=3)
    assert (recipe.align.target, recipe.align.kept) == (1, 2)
    assert (Recipe().align.target, Recipe().align.kept) == (0, 0)
    with pytest.raises(RecipeError, match="greater than or equal to 1"):
        Recipe.create(reference=0)
    file = tmp_path / "report.json"
    flat = {**DEFAULTS, "refit": "auto", "renorm": "auto", "seed": 0, "goal": "child", "polish": None}
    flat |= {"reference": 2, "order": 3}
    for stored in (recipe.model_dump(mode="json"), {**flat, "parents_from": 1}, flat):
        file.write_text(json.dumps({"recipe": stored, "seconds": 1.0}))
        read = Recipe.create(read_settings(str(file)))
        older = stored is flat
        assert (read.align.target, read.align.kept) == ((2, 3) if older else (1, 2))
    # Settings that were ignored then are left out; what a hand writes is new.
    file.write_text(json.dumps({"recipe": {**flat, "criterion": "weights", "distance": "scaled"}, "seconds": 1.0}))
    assert Recipe.create(read_settings(str(file))).align.compared.distance == "best"
    file.write_text(json.dumps({"reference": 2}))
    assert Recipe.create(read_settings(str(file))).align.target == 1
    file.write_text(json.dumps({"criterion": "weights", "distance": "scaled"}))
    with pytest.raises(RecipeError, match="distance scaled would be ignored"):
        read_settings(str(file))


def test_images_to_train_on_come_without_a_recipe(digits):
    with pytest.raises(TypeError):
        Distillation(digits, Recipe(distil=1))


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((0.9, 0.9), "sum to 1"),
        ((1.5, -0.5), "not negative"),
        (0.3, "no sequence of numbers"),
        ({0: 0.3, 1: 0.7}, "no sequence of numbers"),
        ({0.3, 0.7}, "no sequence of numbers"),
        ((0.3, "half"), "are no numbers"),
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
    with pytest.raises(RecipeError, match=r"(solver.regularisation|train.learning_rate|seed): Input should be"):
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
    assert "auto" not in made.settings.values()
    path = "align.criterion.distance"
    assert made.settings.get(path) != "best" or not is_read(path, made.settings)
    assert None not in {made.merge.weights, made.align.order}
    assert made.align.through.name == "universe" or made.settings["align.through.parent"] is not None
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
    result = fuse(small_parents(), recipe, calibration_loader(digits, 80))
    with pytest.raises(RecipeError, match="best of several candidates"):
        result.at(result.shares)


@pytest.mark.parametrize(("name", "value"), [("refit_steps", 9), ("targets", "matched"), ("augment", False)])
def test_settings_of_a_refit_that_is_not_made_are_refused(images, name, value):
    recipe = Recipe(**{name: value, "solver": "sinkhorn"})
    with pytest.raises(RecipeError, match=f"{value} would be ignored: refit auto is none here: solver sinkhorn"):
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


def test_settings_are_read_by_the_names_that_they_are_written_by() -> None:
    recipe = Recipe(criterion="weights", solver="frank-wolfe", universe=True, iterations=7, weights=(0.3, 0.7))
    assert (recipe.criterion, recipe.solver, recipe.universe, recipe.iterations) == ("weights", "frank-wolfe", True, 7)
    assert recipe.weights == (0.3, 0.7)
    assert Recipe().universe is False
    with pytest.raises(AttributeError, match="regularisation where nothing reads it"):
        _ = Recipe(solver="emd").regularisation
    with pytest.raises(AttributeError, match="colour"):
        _ = Recipe().colour
    assert copy.deepcopy(recipe) == pickle.loads(pickle.dumps(recipe)) == recipe


def test_settings_are_given_over_those_of_the_preset_that_they_name() -> None:
    for recipe in (Recipe(preset="distil"), Recipe.create(preset="distil"), Recipe.create({"preset": "distil"})):
        assert recipe == preset("distil").recipe
        assert recipe.train.distil > 0
    changed = Recipe(preset="git-re-basin", seed=3, renorm="none")
    assert (changed.align.criterion.name, changed.seed, changed.renorm.name) == ("weights", 3, "none")
    back = Recipe(preset="distil").changed({"train.distil": 0})
    assert back.train.distil == 0
    for recipe in (changed, back):
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe
    with pytest.raises(RecipeError, match="regularisation"):
        Recipe.create({"preset": "git-re-basin", "align.solver.regularisation": 0.1})
    assert Recipe(preset="own").preset == "own"


def test_a_preset_is_more_than_its_name() -> None:
    with pytest.raises(RecipeError, match="begin with Recipe"):
        Recipe(seed=1).changed(preset="best")
    assert Recipe(preset="best").changed(preset="best", seed=1).goal.name == "best"
    for build in (lambda: Recipe(preset="distill"), lambda: Recipe.create(preset="distill")):
        with pytest.warns(DepfuseWarning, match="did you mean distil"):
            build()
    stored = Recipe(preset="own").changed(preset="bests")
    assert Recipe.model_validate_json(stored.model_dump_json()) == stored  # as whole as it was, without a word


def test_what_is_no_list_is_said_to_be_none() -> None:
    with pytest.raises(RecipeError, match=r"merge\.weights: it must be a list, not 'hello'"):
        Recipe.create({"merge": {"weights": "hello"}})
