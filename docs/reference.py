"""Write the pages of the reference from the tree: one for each room of the package, with all its modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PAGES = Path(__file__).resolve().parent / "api"
INTRODUCTION = """# Reference

Built from the docstrings, room by room, lowest floor first. What most programs need can be imported from `depfuse`
itself: {names}.

```{{toctree}}
:maxdepth: 1

{rooms}
```
"""


def floors() -> list[str]:
    """List the rooms of the package, lowest floor first, as the contract on imports in `pyproject.toml` does."""
    layers = re.search(r"^layers = (\[.*?^\])", (TOP / "pyproject.toml").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert layers is not None
    return [name.strip("() ") for layer in reversed(ast.literal_eval(layers[1])) for name in layer.split("|")]


def rooms() -> list[str]:
    """List the rooms that have a page: all that are there but the command line, which has its own."""
    return [name for name in floors() if name != "cli" and (TOP / "depfuse" / name / "__init__.py").exists()]


def modules(room: str) -> list[str]:
    """List the modules of a room that have anything to describe."""
    named = []
    for path in sorted((TOP / "depfuse" / room).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign) for node in tree.body):
            name = ".".join(path.relative_to(TOP).with_suffix("").parts)
            if path.name != "__init__.py":
                named.append(name)
            elif any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
                named.append(name.removesuffix(".__init__"))
    return named


def write_pages() -> None:
    """Write one page for each room, and the first page."""
    PAGES.mkdir(exist_ok=True)
    for room in rooms():
        text = ast.get_docstring(ast.parse((TOP / "depfuse" / room / "__init__.py").read_text("utf-8"))) or ""
        parts = [f"# `{room}`", text.split("\n")[0]]
        for name in modules(room):
            options = ":members:\n   :ignore-module-all:"  # what two modules offer is described where it is made
            parts += [f"## `{name}`", f"```{{eval-rst}}\n.. automodule:: {name}\n   {options}\n```"]
        (PAGES / f"{room}.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    import depfuse

    names = ", ".join(f"{{py:obj}}`{name}`" for name in depfuse.__all__)
    (PAGES / "index.md").write_text(INTRODUCTION.format(names=names, rooms="\n".join(rooms())), "utf-8")
