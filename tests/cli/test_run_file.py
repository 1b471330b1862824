"""A recipe file that is the whole command: networks, method, parameters; every mistake in it is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from digits_parents import digits_files

from depfuse import load
from depfuse.cli import main

NETWORKS = {"parents": ["a.safetensors", "b.safetensors"], "data": "digits", "calibration": {"images": 200}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the recipe and its networks, and another one to work in."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "work").mkdir()
    for name, file in zip("ab", digits_files("a", "b"), strict=True):
        (tmp_path / "recipes" / f"{name}.safetensors").write_bytes(Path(file).read_bytes())
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def write(content: object) -> str:
    file = Path("../recipes/recipe.yaml")
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(file)


def test_a_file_and_a_folder_are_the_whole_command() -> None:
    recipe = write({**NETWORKS, "preset": "git-re-basin", "merge": {"weights": [0.7, 0.3]}, "report": "report.json"})
    assert main(["fuse", recipe, "--out", "child", "--quiet"]) == 0
    assert sorted(path.name for path in Path("child").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    report = json.loads(Path("../recipes/report.json").read_text())
    assert report["recipe"]["preset"] == "git-re-basin"
    assert report["recipe"]["merge"]["weights"] == [0.7, 0.3]
    assert [Path(own["path"]).name for own in report["parents"]] == ["a.safetensors", "b.safetensors"]
    assert load("child")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_networks_and_images_are_described_in_it_and_options_count_for_more() -> None:
    of_images = {"arch": "digits_resnet(width=1.25)", "mean": [0.3], "std": 0.4, "size": [8, 8]}
    recipe = write({**NETWORKS, **of_images, "preset": "fast", "out": "child.safetensors"})
    assert main(["fuse", recipe, "--quiet", "--std", "0.5", "--report", "report.json"]) == 0
    assert Path("../recipes/child.safetensors").is_file()
    assert json.loads(Path("report.json").read_text())["preprocessing"] == {"size": [8, 8], "mean": [0.3], "std": [0.5]}


MISTAKES: list[tuple[object, str]] = [
    ({"preset": "fast"}, "names no parents: write parents: ["),
    ({**NETWORKS, "parents": "a.safetensors"}, "parents is a list of files or folders, such as ["),
    ({**NETWORKS, "parents": ["a.safetensors", 3]}, "parents is a list of files or folders"),
    ({**NETWORKS, "parents": ["a.safetensors"]}, "two"),
    ({**NETWORKS, "parents": ["a.safetensors", "c.safetensors"]}, "c.safetensors"),
    ({**NETWORKS, "preset": "fats"}, "there is no recipe 'fats': did you mean fast?"),
    ("{parents: [a.safetensors, b.safetensors], preset: fats}", "there is no recipe 'fats'"),
    ({**NETWORKS, "presets": "fast"}, "there is no setting 'presets': did you mean preset?"),
    ({**NETWORKS, "merge": {"weights": [0.7, 0.4]}}, "they must sum to 1"),
    ({**NETWORKS, "merge": {"weights": [0.5, 0.3, 0.2]}}, "3"),
    ({**NETWORKS, "align": {"solver": {"name": "emd", "regularisation": 1}}}, "regularisation"),
    ({**NETWORKS, "classes": [0, 1]}, "classes is a list with one text per parent"),
    ({**NETWORKS, "key": 3}, "key is a text, such as state_dict_ema"),
    ({**NETWORKS, "mean": "grey"}, "mean is a number for each channel"),
    ({**NETWORKS, "size": []}, "size is height and width in pixels"),
    ({**NETWORKS, "crop": 0}, "crop is a number of pixels, such as 64"),
    ({**NETWORKS, "out": 3}, "out is a text, not 3"),
    ({**NETWORKS, "arch": {"name": "resnet18"}}, "arch is an architecture, such as torchvision:resnet18"),
    ({**NETWORKS, "arch": "nets.py:Net"}, "arch nets.py:Net is code of somebody's own, and reading a file runs none"),
    ("parents: [a.safetensors, b.safetensors", "is not YAML in line 1, column 39: expected ',' or ']'"),
    (
        "preset: fast\nmerge: {weights: [0.7, 0.3}\n",
        "is not YAML in line 2, column 27: expected ',' or ']', but got '}'",
    ),
    ("parents: [a, b]\n\tpreset: fast\n", "is not YAML in line 2, column 1: found character"),
    ("a: \x01", "is not YAML: unacceptable character #x0001: special characters are not allowed at position 3"),
    ("parents: [a.safetensors, b.safetensors]\nseed: 1\nseed: 2", "seed is said twice"),
    ("- a.safetensors", "is no object of settings"),
    (
        {"models": [{"model": "a"}, {"model": "b"}], "merge_method": "linear", "dtype": "float16"},
        "is written for mergekit, whose words differ here: models is parents, a list of files or folders; merge_method"
        " is preset, such as soup for linear",
    ),
]


@pytest.mark.parametrize(("content", "sentence"), MISTAKES, ids=[sentence[:30] for _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence(content: object, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    trap = Path("../recipes/nets.py")
    trap.write_text("open('ran', 'w')\nNet = None\n")
    assert main(["fuse", write(content), "--out", "child"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("depfuse: ")
    assert said.count("\n") == 1, said
    assert sentence in said
    assert list(Path().iterdir()) == []
