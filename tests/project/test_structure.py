"""The house: rooms import from lower floors alone, functions are short, and dependencies are those that are used."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PROJECT = (TOP / "pyproject.toml").read_text("utf-8")
FILES = sorted((TOP / "depfuse").rglob("*.py"))
MOST_LINES, MOST_PARAMETERS = 120, 8


def functions(file: Path) -> Iterator[tuple[str, int, int]]:
    """Name, lines and parameters of every function of a file, `self` not counted."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = bool(given) and given[0].arg in ("self", "cls")
            stars = (node.args.vararg is not None) + (node.args.kwarg is not None)
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield f"{file.relative_to(TOP).as_posix()}:{node.name}", lines, len(given) - own + stars


def imported() -> set[str]:
    """Third-party packages that the package imports, by the names of their modules."""
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            found |= {name.split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"depfuse"}


def spelled(name: str) -> str:
    """Spell the name of a distribution as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra: str | None = None) -> set[str]:
    """Dependencies in pyproject.toml, or one of its extras."""
    section = rf"^{extra} = \[(.*?)\]$" if extra else r"^dependencies = \[(.*?)^\]"
    match = re.search(section, PROJECT, re.M | re.S)
    assert match is not None
    names = re.findall(r'"([A-Za-z0-9_.-]+)', match[1])
    return {spelled(name) for name in names}


def test_rooms_import_from_lower_floors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    linter = pytest.importorskip("importlinter.cli")
    monkeypatch.chdir(TOP)
    assert linter.lint_imports(no_cache=True) == 0


def test_below_the_command_line_no_function_is_long_or_takes_much() -> None:
    wrong = [
        (name, lines, parameters)
        for file in FILES
        for name, lines, parameters in functions(file)
        if not name.startswith("depfuse/cli/") and (lines > MOST_LINES or parameters > MOST_PARAMETERS)
    ]
    assert wrong == []


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    homes = {module: {spelled(name) for name in names} for module, names in packages_distributions().items()}
    # Under its usual name where it is not installed here.
    used = {module: homes.get(module, {spelled(module)}) for module in imported()}
    extras = ("timm", "huggingface", "lightning", "upscale", "flower")
    allowed = declared().union(*map(declared, extras))
    assert [module for module, names in used.items() if not names & allowed] == []
    assert declared() - set().union(*used.values()) == set()
