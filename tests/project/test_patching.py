"""Tests give the product settings, arguments and objects of their own, and leave what it is made of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PRODUCT = ("depfuse", "experiments")
PATCHES = ("setattr", "delattr", "setitem", "delitem")
# What else is there to be patched is the surroundings: files, clocks, devices, terminals, downloads. Here they can be
# had in no other way.
STAYS = {
    "tests/data/test_forms.py: array_files._PIECE": "an array of many pieces, which would be of gigabytes",
    "tests/data/test_forms.py: stored_images.HELD_BYTES": "a folder that is too large to be held",
    "tests/io/test_security.py: depfuse.data.memory.free_memory": "a machine with 100 bytes of memory",
    "tests/shared_work.py: processes.launch": "one team, which takes long to make, for all that is run in it",
}


def origins(tree: ast.Module) -> dict[str, str]:
    """Map the names that a file imports to what they are."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(of.asname or of.name.split(".")[0]): of.name for of in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(of.asname or of.name): f"{node.module}.{of.name}" for of in node.names}
    return found


def of_product(target: ast.expr, names: dict[str, str]) -> bool:
    """Tell whether an expression is a module, a class or an object of the product, or a text that names one."""
    while isinstance(target, (ast.Attribute, ast.Subscript)):
        target = target.value
    name = target.value if isinstance(target, ast.Constant) else names.get(getattr(target, "id", ""), "")
    return isinstance(name, str) and name.split(".")[0] in PRODUCT


def patched(tree: ast.Module) -> Iterator[str]:
    """Yield what a file patches in the product: by a fixture, or by an assignment to an attribute of it."""
    names = origins(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATCHES:
            if of_product(node.args[0], names):
                what = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                yield what or f"{ast.unparse(node.args[0])}.{ast.literal_eval(node.args[1])}"
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, (ast.Attribute, ast.Subscript)) and of_product(target, names):
                    yield ast.unparse(target)


def test_no_test_patches_the_product() -> None:
    found = [
        f"tests/{file.relative_to(TESTS).as_posix()}: {what}"
        for file in sorted(TESTS.rglob("*.py"))
        for what in patched(ast.parse(file.read_text("utf-8")))
    ]
    assert set(found) == set(STAYS)
    assert not [
        file for file in TESTS.rglob("*.py") if "unittest.mock" in file.read_text("utf-8") and file != Path(__file__)
    ]


def test_patches_are_seen() -> None:
    tree = ast.parse(
        "import os\nimport depfuse.data as data\nfrom depfuse.train import run\n"
        "def test(monkeypatch):\n"
        "    monkeypatch.setattr(run, 'epochs', 3)\n"
        "    monkeypatch.setattr('depfuse.data.memory.free', 3)\n"
        "    monkeypatch.setattr(os, 'sep', '/')\n"
        "    data.loader.SIZE = 3\n"
        "    os.sep = '/'\n"
    )
    assert set(patched(tree)) == {"run.epochs", "depfuse.data.memory.free", "data.loader.SIZE"}
