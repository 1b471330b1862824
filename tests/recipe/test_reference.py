"""The reference of settings is current, and a file stands for a whole command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digits_parents import digits_files

from depfuse.cli import main
from depfuse.errors import RecipeError
from depfuse.io.checkpoint import read_checkpoint
from depfuse.recipe import Recipe
from depfuse.recipe.arrange import known_places
from depfuse.recipe.paths import parsed
from depfuse.recipe.reference import lines, markdown

TOP = Path(__file__).resolve().parents[2]


def test_the_page_of_settings_is_current() -> None:
    written = (TOP / "docs" / "settings.md").read_text("utf-8")
    assert written == markdown(), "write it again: depfuse settings --markdown > docs/settings.md"
    assert {line.path for line in lines()} == known_places(Recipe).keys() - {"preset"}


def test_settings_are_printed_by_section(capsys) -> None:
    assert main(["settings", "align.solver.regularisation"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("align.solver.regularisation") == 2
    assert "Cuturi 2013" in shown
    assert main(["settings", "align.solvr"]) == 2
    assert "did you mean align.solver?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("align.solver=sinkhorn", "align.solver", "sinkhorn"),
        ("align.solver.regularisation = 5e-2", "align.solver.regularisation", 0.05),
        ("refit.steps=8", "refit.steps", 8),
        ("refit.augment=no", "refit.augment", False),
        ("merge.weights=0.3,0.7", "merge.weights", (0.3, 0.7)),
        ("align.order=none", "align.order", None),
        ("refit_steps=8", "refit_steps", 8),
    ],
)
def test_words_are_read_as_what_a_setting_is(word, path, value) -> None:
    assert parsed([word]) == {path: value}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("align.solver", "sets nothing"),
        ("align.solvr=emd", "did you mean align.solver"),
        ("refit.steps=many", "setting refit.steps 'many'"),
    ],
)
def test_words_that_set_nothing_are_refused(word, said) -> None:
    with pytest.raises(RecipeError, match=said):
        parsed([word])


def test_the_last_of_several_values_counts_and_two_names_of_one_setting_are_refused():
    assert parsed(["seed=1", "seed=2"]) == {"seed": 2}
    with pytest.raises(RecipeError, match=r"align\.solver is set twice, to emd and to sinkhorn"):
        parsed(["solver=emd", "align.solver=sinkhorn"])


def test_a_file_is_the_whole_command(tmp_path, capsys) -> None:
    file = tmp_path / "recipe.yaml"
    parents = digits_files("a", "b")
    file.write_text(
        f"parents: {parents}\ndata: digits\nout: c.safetensors\npreset: fast\ncalibration: {{images: 64}}\n"
    )
    assert main(["fuse", str(file), "--set", "renorm=none"]) == 0
    assert "By preset fast, with renorm=none." in capsys.readouterr().out
    by_file = read_checkpoint(tmp_path / "c.safetensors")
    assert by_file.card is not None
    assert by_file.card.recipe["preset"] == "fast"
    words = [
        "--preset",
        "fast",
        "--calibration",
        "64",
        "--set",
        "renorm=none",
        "--out",
        str(tmp_path / "d.safetensors"),
    ]
    assert main(["fuse", *parents, "--data", "digits", *words, "--quiet"]) == 0
    assert read_checkpoint(tmp_path / "d.safetensors").digest == by_file.digest
    assert main(["fuse", str(file), "--preset", "best"]) == 2
    assert "give one of them" in capsys.readouterr().err
    file.write_text("refit: none\n")
    assert main(["fuse", str(file)]) == 2
    assert "names no parents" in capsys.readouterr().err
    file.write_text("parents: &a [x, y]\ndata: *a\n")
    assert main(["fuse", str(file)]) == 2
    assert "references" in capsys.readouterr().err


def test_a_file_says_which_weights_of_files_that_hold_several(tmp_path, capsys) -> None:
    states = [read_checkpoint(file).state for file in digits_files("a", "b")]
    torch.save({"first": states[0], "second": states[1]}, tmp_path / "both.pt")
    file = tmp_path / "recipe.yaml"
    head = "parents: [both.pt, both.pt]\ndata: digits\nout: c.safetensors\npreset: git-re-basin\n"
    arch = ["--arch", "digits_resnet(width=1.25)"]
    file.write_text(f"{head}key: [first, second]\n")
    assert main(["fuse", str(file), *arch, "--quiet"]) == 0
    words = ["--data", "digits", "--preset", "git-re-basin", "--out", str(tmp_path / "d.safetensors"), "--quiet"]
    assert main(["fuse", *digits_files("a", "b"), *words]) == 0
    digests = [read_checkpoint(tmp_path / name).digest for name in ("c.safetensors", "d.safetensors")]
    assert digests[0] == digests[1]
    file.write_text(f"{head}key: second\n")  # one for all, and both parents are the same network
    assert main(["fuse", str(file), *arch, "--quiet"]) == 0
    assert read_checkpoint(tmp_path / "c.safetensors").digest != digests[0]
    capsys.readouterr()
    file.write_text(f"{head}key: {{a: b}}\n")
    assert main(["fuse", str(file), *arch]) == 2
    assert "key is a text, such as state_dict_ema, or a list" in capsys.readouterr().err


def test_settings_and_completion_do_not_wait_for_torch() -> None:
    program = (
        "import sys, depfuse.recipe, depfuse.recipe.presets as presets; from depfuse.cli import main\n"
        "assert main(['settings', 'refit']) == 0 and main(['recipes']) == 0 and presets.preset('best').recipe\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == 0
