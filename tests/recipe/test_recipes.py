"""Published methods: every file fuses, options count for more, reports are recipes, and what is wrong is said."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
import torch
import yaml
from digits_parents import digits_files, small_files

from depfuse.cli import main
from depfuse.errors import RecipeError
from depfuse.io.checkpoint import read_checkpoint
from depfuse.recipe import Recipe
from depfuse.recipe.arrange import by_path
from depfuse.recipe.presets import as_recipe, names, preset, published, read, read_settings
from depfuse.report import FusionReport, read_report
from depfuse.report.matching import MatchReport

TOP = Path(__file__).resolve().parents[2]
PARENTS = digits_files("a", "b")
FEW = ["--data", "digits", "--calibration", "200", "--quiet"]
ASKED_FOR = {
    "ot-fusion", "depgraph-ot-activations", "depgraph-ot-weights", "graph-matching", "git-re-basin", "repair", "zip-it",
    "c2m3", "pleas", "regmean", "fisher", "cca", "soup",
}  # fmt: skip


def fused(folder: Path, *arguments: object, parents: list[str] = PARENTS) -> FusionReport:
    report = folder / "report.json"
    out = ["--out", str(folder / "child.safetensors"), "--report", str(report)]
    assert main(["fuse", *parents, *FEW, *out, *map(str, arguments)]) == 0
    found = read_report(report)
    assert isinstance(found, FusionReport)
    return found


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> None:
    code = main(arguments)
    stdout, stderr = capsys.readouterr()
    assert code == 2
    assert stdout == ""
    assert stderr.startswith("depfuse: ")
    assert stderr.count("\n") == 1, stderr
    for word in words:
        assert word in stderr, stderr


# --- the files ------------------------------------------------------------------------------------


def test_all_methods_are_there_and_are_packed():
    assert set(published()) == ASKED_FOR
    assert set(names()) == {*ASKED_FOR, "fast", "closed-form", "standard", "best", "distil"}
    (line,) = [line for line in (TOP / "pyproject.toml").read_text().splitlines() if line.startswith("depfuse = [")]
    patterns = json.loads(line.partition("=")[2])
    for name in names():
        assert any(fnmatch.fnmatch(f"recipe/presets/{name}.yaml", pattern) for pattern in patterns)


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_a_method_names_its_paper_and_is_a_few_settings(name):
    found = preset(name)
    file = yaml.safe_load((TOP / "depfuse" / "recipe" / "presets" / f"{name}.yaml").read_text())
    assert file.keys() <= {"title", "paper", "differs", "settings"}
    assert found.title
    assert any(year in found.paper for year in map(str, range(2019, 2026)))
    assert found.differs == file.get("differs", "")
    given = by_path(found.settings)
    assert 2 <= len(given) <= 5
    assert all(found.recipe.settings[path] == value for path, value in given.items())
    assert {**found.recipe.settings, "preset": "standard"} != Recipe().settings


def test_standard_is_the_default_and_every_preset_has_its_name_and_its_cost():
    assert preset("standard").recipe == Recipe() == Recipe.create(read_settings("standard"))
    for name in set(names()) - ASKED_FOR:
        assert preset(name).cost
    assert all(preset(name).recipe.preset == name for name in names())
    assert preset("fast").recipe.changed(distil=2).preset == "fast"


def test_soup_is_the_plain_average(tmp_path):
    report = fused(tmp_path, "--recipe", "soup")
    assert (report.child.accuracy, report.child.loss) == (report.naive.accuracy, report.naive.loss)
    first, second, child = (read_checkpoint(file).state for file in (*PARENTS, tmp_path / "child.safetensors"))
    for key, tensor in child.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (first[key] + second[key]) / 2, rtol=0, atol=1e-6)


def test_no_two_methods_are_the_same():
    recipes = [preset(name).recipe for name in published()]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(recipes)


@pytest.mark.parametrize("name", sorted(ASKED_FOR - {"soup"}))
def test_every_method_fuses_from_files_to_a_file(name, tmp_path):
    report = fused(tmp_path, "--recipe", name)
    asked, made = preset(name).recipe.changed(calibration=200).settings, Recipe(**report.recipe).settings
    left_open = {"task", "renorm", "teach.renorm", "teach.head", "merge.weights", "align.through.parent", "align.order"}
    assert {p: made[p] for p in made.keys() - left_open} == {p: asked[p] for p in asked.keys() - left_open}
    assert "auto" not in made.values()
    assert read_checkpoint(tmp_path / "child.safetensors").digest == report.child.digest
    assert report.child.accuracy > report.naive.accuracy + 0.15


# --- options, files and reports -------------------------------------------------------------------


def test_options_count_for_more_than_the_recipe(tmp_path):
    report = fused(tmp_path, "--recipe", "git-re-basin", "--restarts", 1, "--renorm", "none")
    assert report.recipe["align"]["solver"]["restarts"] == 1
    assert report.recipe["align"]["solver"]["name"] == "coordinate-descent"
    assert report.recipe["renorm"] == {"name": "none"}
    assert report.recipe["preset"] == "git-re-basin"
    # An option counts although it is the default.
    report = fused(tmp_path, "--recipe", "git-re-basin", "--criterion", "activations", "--solver", "emd")
    assert report.recipe["align"]["criterion"]["name"] == "activations"
    assert report.recipe["align"]["solver"]["restarts"] == 8


def test_a_report_run_again_gives_the_same_child(tmp_path):
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for folder in (first, second, other):
        folder.mkdir()
    before = fused(first, "--recipe", "zip-it", "--weights", "0.3,0.7", "--seed", 3)
    report = str(first / "report.json")
    # The number of images is the report's too.
    assert main(["fuse", *PARENTS, "--quiet", "--recipe", report, "--out", str(second / "child.safetensors")]) == 0
    assert read_checkpoint(second / "child.safetensors").digest == before.child.digest
    after = fused(other, "--recipe", report, "--weights", "0.5,0.5")
    assert after.child.digest != before.child.digest
    assert after.recipe["seed"] == 3


def test_a_file_called_like_a_preset_is_what_it_says(tmp_path):
    for name in ("best", "mine"):
        (tmp_path / f"{name}.yaml").write_text("settings: {seed: 3}")
    found, other = (as_recipe(tmp_path / f"{name}.yaml") for name in ("best", "mine"))
    assert {**found.settings, "preset": "mine"} == other.settings
    assert (found.preset, found.goal.name, found.seed) == ("best.yaml", "child", 3)
    assert Recipe.create(read_settings(str(tmp_path / "best.yaml"))) == found


def test_files_hold_settings_in_three_ways(tmp_path):
    file = tmp_path / "own.json"
    settings = {"align.criterion": "weights", "align.solver.restarts": 2, "preset": "own"}
    old = {"criterion": "weights", "restarts": 2}
    nested = {"align": {"criterion": "weights", "solver": {"name": "emd", "restarts": 2}}}
    about = {"title": "Own", "paper": "None", "differs": "All of it."}
    for content in (old, {"recipe": old}, {**about, "settings": old}, {"parents": ["a", "b"], **old}):
        file.write_text(json.dumps(content))
        assert read_settings(str(file)) == settings
    file.write_text(json.dumps({"settings": nested, "parents": ["a", "b"], "data": "digits"}))
    assert read_settings(str(file)) == {**settings, "align.solver": "emd"}
    assert read(str(file)).run == {"parents": ["a", "b"], "data": "digits"}
    other = tmp_path / "own.yaml"
    other.write_text("preset: fast\nalign: {criterion: weights, solver: {name: emd, restarts: 2}}\n")
    assert read_settings(str(other)) == {**settings, "align.solver": "emd", "refit": "none", "preset": "fast"}
    shipped = TOP / "depfuse" / "recipe" / "presets" / "cca.yaml"
    assert read_settings(str(shipped)) == read_settings("cca")
    (tmp_path / "cca").write_text("no recipe")
    assert read_settings("cca")["align.solver.regularisation"] == 10.0


def test_paths_and_matchings_take_a_recipe_too(tmp_path, capsys):
    out, parents = tmp_path / "path.json", small_files()
    assert main(["path", *parents, *FEW, "--points", "3", "--recipe", "cca", "--report", str(out)]) == 0
    assert json.loads(out.read_text())["recipe"]["align"]["solver"]["name"] == "cca"
    paths = []
    for methods in ("activations:emd,activations:cca", "activations:cca,activations:emd"):
        several = ["--points", "3", "--methods", methods, "--report", str(out), "--recipe", "cca"]
        assert main(["path", *parents, *FEW, *several]) == 0
        paths.append({method["name"]: method["path"] for method in json.loads(out.read_text())["methods"]})
    assert paths[0] == paths[1], "a method's path depends on what was fused before it"
    report = tmp_path / "match.json"
    assert main(["match", *PARENTS, *FEW, "--recipe", "cca", "--report", str(report)]) == 0
    found = MatchReport.model_validate_json(report.read_text())
    assert found.recipe["align"]["solver"] == preset("cca").recipe.align.solver.model_dump()
    assert all(group.correlation_after > group.correlation_before for group in found.matchings[0].groups)
    capsys.readouterr()


def test_recipes_lists_all_with_their_papers(capsys):
    assert main(["recipes"]) == 0
    stdout = capsys.readouterr().out
    for name in names():
        found = preset(name)
        (line,) = [line for line in stdout.splitlines() if line.startswith(f"{name} ")]
        assert found.title in line
        assert (found.paper or found.cost) in line
        assert found.differs in line
    assert main(["fuse", "--help"]) == 0
    assert "--preset" in (text := capsys.readouterr().out)
    assert "depfuse recipes" in " ".join(text.split())


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fuse", "path", "match"])
def test_recipes_that_do_not_exist(command, capsys):
    refused(capsys, [command, *PARENTS, "--recipe", "zipit"], "'zipit'", "did you mean zip-it?", "git-re-basin")
    refused(capsys, [command, *PARENTS, "--recipe", "magic"], "there is no recipe 'magic'", *published())
    refused(capsys, [command, *PARENTS, "--recipe", "none/such.json"], "none/such.json cannot be read", "No such file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["is not JSON", "line 1"]),
        (b"\xff\xfe\x00", ["is not JSON"]),
        ("[1, 2]", ["is no object of settings"]),
        ('{"seed": 1, "train": {"distil": 1, "distil": 2}}', ["is not JSON: distil is said twice"]),
        ('{"settings": 3, "title": ""}', ["is no object of settings"]),
        ('{"recipe": "cca"}', ["is no object of settings"]),
        ('{"solvr": "emd"}', ["no setting 'solvr'", "did you mean solver?"]),
        ('{"recipe": {"colour": 1}}', ["no setting 'colour'", "depfuse settings"]),
        ('{"settings": {}, "solver": "emd"}', ["no setting 'settings'"]),
        ('{"solver": "magic"}', ["own.json", "setting align.solver", "emd"]),
        ('{"criterion": "weights", "restarts": "many"}', ["own.json", "solver.restarts", "integer"]),
        ('{"universe": true, "reference": 1}', ["own.json", "reference 1 would be ignored"]),
        ('{"solver": "cca", "refit": "ridge"}', ["own.json", "refit ridge", "solver cca mixes channels"]),
    ],
)
def test_files_that_are_no_recipes(content, words, tmp_path, capsys):
    file = tmp_path / "own.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(capsys, ["fuse", *PARENTS, "--recipe", str(file), "--out", str(tmp_path / "c.safetensors")], *words)
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


def test_a_folder_is_no_recipe(tmp_path, capsys):
    refused(capsys, ["fuse", *PARENTS, "--recipe", f"{tmp_path}/"], "cannot be read", "directory")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("c2m3", ["--reference", "1"], ["reference 1 would be ignored"]),
        ("fisher", ["--solver", "sinkhorn"], ["average fisher", "sinkhorn gives none"]),
        ("zip-it", ["--refit", "ridge"], ["refit ridge", "solver zip-it mixes channels"]),
        ("zip-it", ["--average", "fisher"], ["average fisher", "zip-it gives none"]),
        ("zip-it", ["--goal", "best"], ["goal best", "leave out solver zip-it"]),
        ("zip-it", ["--weights-by", "stage"], ["one share per parent", "merge.weights_by stage"]),
        ("zip-it", ["--plot", "path.png"], ["a path has other shares at every point"]),
        ("cca", ["--keep-worst", "0.2"], ["side by side by pairs", "keep_worst"]),
        ("cca", ["--renorm", "repair"], ["channel by channel", "solver cca mixes"]),
        ("cca", ["--choose", "groups"], ["one solution", "align.choose groups"]),
        ("cca", ["--start", "spectral"], ["start spectral would be ignored"]),
        ("cca", ["--criterion", "weights"], ["works on activations"]),
        ("graph-matching", ["--criterion", "activations"], ["matches weights"]),
        ("git-re-basin", ["--restarts", "0"], ["restarts", "greater than or equal to 1"]),
        ("pleas", ["--start", "zip-it"], ["start"]),
    ],
)
def test_options_that_contradict_the_recipe(name, options, words, tmp_path, capsys):
    out = ["--out", str(tmp_path / "child.safetensors")]
    refused(capsys, ["fuse", *PARENTS, *FEW, *out, "--recipe", name, *options], *words)
    assert not list(tmp_path.iterdir())


def test_a_zip_has_no_matching_and_no_path(capsys):
    refused(capsys, ["match", *PARENTS, *FEW, "--recipe", "zip-it"], "zip-it matches no parent to another")
    refused(capsys, ["path", *PARENTS, *FEW, "--recipe", "zip-it"], "a path has other shares")
    refused(capsys, ["path", *PARENTS, *FEW, "--methods", "weights,activations:zip-it"], "a path has other shares")
    with pytest.raises(RecipeError, match="is none of none, activations"):
        Recipe.create(solver="frank-wolfe", criterion="weights", start="cca")
