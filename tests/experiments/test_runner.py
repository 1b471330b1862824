"""`python -m experiments`: everything is listed, runs by its name, and its page is written from stored rows."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.lib import places, registry
from experiments.lib.study import Study, chosen_steps
from experiments.studies import ablate_child

FIGURES = "0.5,1.2,0.6,0.7,1.0,2.0,2.0,,,,,,,naive average,,a processor,1,"
HEAD = ",".join(
    ablate_child.STUDY.cells(ablate_child.STUDY.setup(ablate_child.STUDY.parser().parse_args([]), {})).columns
)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch) -> Path:
    """A folder of measurements with one row of one study."""
    for name in ("MEASUREMENTS", "PAGES"):
        monkeypatch.setattr(places, name, tmp_path / name.lower())
    (tmp_path / "measurements").mkdir()
    monkeypatch.setattr(ablate_child.Study, "csv", property(lambda own: places.MEASUREMENTS / f"{own.name}.csv"))
    study = ablate_child.STUDY
    head = ",".join(study.cells(study.setup(study.parser().parse_args([]), {})).columns)
    settings = ablate_child.STEPS["naive average"].described.replace('"', '""')
    row = f'digits,"{settings}",0,0,0,0.5,1.2,0.6,1.0,0.1,0.1,,,,,,,0.7,naive average,,a processor,1,'
    (tmp_path / "measurements" / "ablate_child.csv").write_text(f"{head}\n{row}\n")
    return tmp_path


def test_a_list_has_every_experiment_with_what_it_claims(capsys) -> None:
    assert main(["list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    folders = (places.ROOT / "experiments" / name for name in registry.FOLDERS)
    assert lines.keys() == {path.stem for of in folders for path in of.glob("[a-z]*.py")} | set(registry.TRAINERS)
    assert lines["ablate_parents"] == "What the number of parents and their shares do to the child."


def test_every_head_says_its_command() -> None:
    for name, path in registry.files().items():
        assert f"python -m experiments run {name}" in registry.docstring(path), name


def commands() -> list[str]:
    """Every command that runs an experiment, in README and documentation."""
    pages = [places.ROOT / "README.md", *sorted((places.ROOT / "docs").rglob("*.md"))]
    return sorted({one for page in pages for one in re.findall(r"experiments run ([^`\n]+)", page.read_text("utf-8"))})


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_documentation_is_understood(command: str) -> None:
    name, *words = shlex.split(command)
    module = import_module(".".join(registry.files()[name].relative_to(places.ROOT).with_suffix("").parts))
    own = getattr(module, "STUDY", module)
    if hasattr(own, "parser"):
        options = own.parser().parse_args(words)
        if isinstance(own, Study):
            assert set(options.sets) <= set(own.parents)
            assert chosen_steps(own, options)


def test_a_page_is_written_from_stored_rows_and_keeps_what_was_measured_earlier(stored: Path, capsys) -> None:
    page = stored / "pages" / "ablate_child.md"
    page.parent.mkdir()
    page.write_text("# old\n\nold table\n\n## Measured earlier\n\n| what |\n")
    assert main(["tables"]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    assert text.startswith("# Every step of a fusion alone and together")
    assert "python -m experiments run ablate_child" in text
    assert "Measured on a processor, 1 thread." in text
    assert "| naive average | 50.0 |" in text
    assert "old table" not in text
    assert text.endswith("## Measured earlier\n\n| what |\n")
    assert main(["tables", "ablate_child"]) == 0
    assert page.read_text() == text


def test_nothing_stored_and_wrong_words_end_with_2(stored: Path, capsys) -> None:
    assert main(["tables", "ablate_groups"]) == 2
    assert capsys.readouterr().err.startswith("nothing of ablate_groups is stored: measure it with")
    for words in (["run", "nothing"], ["tables", "nothing"]):
        assert main(words) == 2
        assert "there is no experiment 'nothing'" in capsys.readouterr().err
    for words in ([], ["run"], ["list", "x"], ["measure"]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("Usage: ")
