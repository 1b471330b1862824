"""Write the pages of the reference from the tree: one for each room of the package, with all its modules."""

from __future__ import annotations

import ast
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


def rooms() -> list[str]:
    """List the rooms of the package, lowest floor first, as the contract on imports in `pyproject.toml` does."""
    return sorted(path.parent.name for path in (TOP / "depfuse").glob("*/__init__.py") if path.parent.name != "cli")


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
            parts += [f"## `{name}`", f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```"]
        (PAGES / f"{room}.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    import depfuse

    names = ", ".join(f"{{py:obj}}`{name}`" for name in depfuse.__all__)
    (PAGES / "index.md").write_text(INTRODUCTION.format(names=names, rooms="\n".join(rooms())), "utf-8")
