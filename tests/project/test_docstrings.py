"""A function's docstring says what the function does, in the imperative: ruff's D401 passes over most noun phrases."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
NOT_A_VERB = {
    "a", "all", "an", "each", "every", "how", "it", "its", "names", "no", "one", "the", "these", "this", "those",
    "what", "when", "where", "whether", "which", "who",
}  # fmt: skip


def modules() -> dict[str, Path]:
    return {file.relative_to(TOP).as_posix(): file for file in sorted((TOP / "depfuse").rglob("*.py"))}


def without_a_verb(source: str) -> Iterator[str]:
    """Functions whose docstring begins with a noun phrase; a property may, as numpydoc has it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        head = (ast.get_docstring(node) or "").split("\n")[0]
        word = re.match(r"[A-Z][a-z]*", head)
        if head and (word is None or word[0].lower() in NOT_A_VERB):
            yield f"{node.lineno} {node.name}: {head}"


@pytest.mark.parametrize(
    ("head", "noun_phrase"),
    [
        ("Compute the logits of a batch.", False),
        ("The logits of a batch.", True),
        ("Whether all values are finite.", True),
        ("`refit=ridge, seed=3`.", True),
    ],
)
def test_a_noun_phrase_is_told_from_a_sentence(head: str, noun_phrase: bool) -> None:
    function = f'def f():\n    """{head}"""\n'
    assert bool(list(without_a_verb(function))) is noun_phrase
    assert not list(without_a_verb(f"@property\n{function}"))
    assert not list(without_a_verb(f'class C:\n    """{head}"""\n'))


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    assert len(modules()) > 30
    wrong = {name: list(without_a_verb(file.read_text("utf-8"))) for name, file in modules().items()}
    assert {file: names for file, names in wrong.items() if names} == {}
