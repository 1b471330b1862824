"""README and guide: short, true, and with commands that exist."""

from __future__ import annotations

import csv
import functools
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from depfuse.cli import main
from depfuse.cli.app import COMMANDS, build_app
from depfuse.recipe import Recipe
from depfuse.recipe.paths import parsed
from depfuse.recipe.presets import preset
from experiments.lib.headline import renewed

TOP = Path(__file__).resolve().parents[2]
README = TOP / "README.md"
PAGES = [README, *sorted((TOP / "docs" / "guide").glob("*.md"))]
RESULTS = TOP / "docs" / "results"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `depfuse` in every line of a page's shell blocks that runs it, by itself or in a container."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|\s)(?:depfuse|compose\.yaml run --rm \w+) (.*)", line)
            if found is not None:
                yield shlex.split(found[1], comments=True)


@functools.cache
def options() -> dict[str, set[str]]:
    """Every command's options."""
    app = typer.main.get_command(build_app(list(COMMANDS)))
    context = typer.Context(app, info_name="depfuse")
    found = {}
    for name in COMMANDS:
        command = app.get_command(context, name)  # type: ignore[attr-defined]
        found[name] = {flag for own in command.params for flag in (*own.opts, *own.secondary_opts)} | {"--help"}
    return found


def test_the_readme_has_at_most_200_lines_and_results_of_eight() -> None:
    lines = README.read_text("utf-8").splitlines()
    assert len(lines) <= 200
    begin, end = lines.index("<!-- results:begin -->"), lines.index("<!-- results:end -->")
    assert sum(line.startswith("|") for line in lines[begin:end]) == 2 + 8


def test_the_results_of_the_readme_are_those_that_experiments_write() -> None:
    text = README.read_text("utf-8")
    assert renewed(text) == text
    assert renewed(text.replace("| **98.8** |", "| **99.9** |")) == text
    with pytest.raises(ValueError, match="lacks <!-- results:end -->"):
        renewed(text.replace("<!-- results:end -->", ""))


def test_every_result_of_the_readme_is_on_the_page_that_it_names() -> None:
    text = README.read_text("utf-8")
    shown = text[text.index("<!-- results:begin -->") : text.index("<!-- results:end -->")]
    with (RESULTS / "headline.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        page = (RESULTS / f"{row['page']}.md").read_text("utf-8")
        (line,) = [line for line in shown.splitlines() if line.startswith(f"| {row['networks']} |")]
        assert f"(docs/results/{row['page']}.md)" in line
        assert row["published"] in line
        for column in ("parents", "ensemble", "plain average", "child"):
            for figure in row[column].split(" / "):
                assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d])", page), (row["networks"], column, figure)
                assert figure in line


def test_places_that_the_readme_names_exist() -> None:
    places = re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8"))
    assert len(places) > 20
    for place in places:
        assert place.startswith("https://") or (TOP / place).exists(), place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_commands_are_those_of_the_command(page: Path) -> None:
    known = options()
    for words in commands(page):
        assert words[0] in known, words
        named = {word.split("=")[0] for word in words[1:] if re.match("--?[a-z]", word)}
        assert named <= known[words[0]], words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_in_commands_make_a_recipe(page: Path) -> None:
    for words in commands(page):
        pairs = list(itertools.pairwise(words))
        names = [value for word, value in pairs if word == "--preset" and "." not in value]  # files are not here
        settings = preset(*(names or ["standard"])).settings
        given = parsed(value for word, value in pairs if word == "--set")
        Recipe.with_read({**settings, **given}, keep=given)


def test_the_check_of_options_sees_a_command() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 20
    assert "--calibration" in options()["fuse"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_sentences_are_those_of_a_command(page: Path) -> None:
    known = set().union(*options().values())
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`(--[^`]*)`", text):
        assert code.split()[0].split("=")[0] in known, code


@pytest.mark.slow
def test_the_library_in_ten_lines_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").symlink_to(TOP / "checkpoints")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(README, "python")
    assert len(block.strip().splitlines()) <= 10
    exec(compile(block, str(README), "exec"), {})
    keep = re.search(r"^Keep the child: of 500 test images it gets ([\d.]+) % right", capsys.readouterr().out, re.M)
    assert keep is not None
    assert float(keep[1]) > 95
    assert (tmp_path / "child.safetensors").is_file()


@pytest.mark.slow
def test_the_first_fusion_prints_what_the_readme_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for what rounding changes: numbers."""
    (words,) = [words for words in commands(README) if "digits" in words]
    (shown,) = blocks(README, "text")
    (tmp_path / "checkpoints").symlink_to(TOP / "checkpoints")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    printed = capsys.readouterr().out
    children = [float(figure) for text in (shown, printed) for figure in re.findall(r"(?m)^child +([\d.]+) %", text)]
    assert len(children) == 2
    assert children[0] == pytest.approx(children[1], abs=1)

    def form(text: str) -> str:
        return " ".join(re.sub(r"\d+\.\d+", "0", text).split())

    assert form(shown) == form(printed)
