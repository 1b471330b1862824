"""Settings of the documentation site: `sphinx-build -W docs build/docs` makes it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from pydantic import BaseModel
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from typer.cli import get_docs_for_click

import depfuse
from depfuse.cli.app import COMMANDS, build_app

sys.path.insert(0, str(Path(__file__).parent))  # for mathml.py and reference.py

from reference import write_pages

project = "depfuse"
version = release = depfuse.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "mathml"]
html_theme = "furo"
html_title = "depfuse"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_copyright = html_copy_source = False
html_math_renderer = "mathml"
pygments_dark_style = "github-dark"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # docstrings write names in single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100


def describe_settings(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Say of a pydantic model what its fields do, where their descriptions are not in its docstring."""
    if what != "class" or not issubclass(obj, BaseModel):
        return
    described = {key: field for key, field in obj.model_fields.items() if field.description}
    if described:
        lines += ["Attributes", "----------"]
    for key, field in described.items():
        lines += [key, f"    {field.description}. Default: ``{field.default!r}``."]


def name_singly(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give names that share a description (`a, b`) one each: napoleon takes one of them for a type otherwise."""
    shared = re.compile(r"^(\w+(?:, \w+)+)\n((?:    .*(?:\n|\Z))+)", re.MULTILINE)
    text = shared.sub(lambda found: "".join(f"{own}\n{found[2]}" for own in found[1].split(", ")), "\n".join(lines))
    lines[:] = text.split("\n")


def shorten_signature(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, None] | None:
    """Shorten the signature of a pydantic model: its fields are described below it."""
    return ("(**fields)", None) if what == "class" and issubclass(obj, BaseModel) else None


def insert_commands(app: Sphinx, page: str, source: list[str]) -> None:
    """Append what every subcommand's --help says to the page on the command line."""
    if page == "guide/command_line":
        command = typer.main.get_command(build_app(list(COMMANDS)))
        context = typer.Context(command, info_name="depfuse")
        for name in COMMANDS:
            own = command.get_command(context, name)  # type: ignore[attr-defined]
            text = get_docs_for_click(obj=own, ctx=context, indent=1, call_prefix="depfuse")
            text = re.sub(r"^Example: (.*)$", r"Example: `\1`", text, flags=re.MULTILINE)
            # Options in sentences, too, are code: their hyphens would become a dash.
            text = re.sub(r"`[^`]*`|--[a-z][a-z-]*", lambda found: f"`{found[0].strip('`')}`", text)
            source[0] += "\n" + text


def link_by_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element
) -> nodes.reference | None:
    """Link `find_groups` to the one function, class or exception of that name in the package.

    A plain word, such as `kept`, is more often a parameter.
    """
    if node.get("reftype") != "obj" or re.fullmatch("[a-z]*", node["reftarget"]):
        return None
    python = env.domains.python_domain
    found = [
        name
        for name, kept in python.objects.items()
        if name.endswith(f".{node['reftarget']}") and kept.objtype in ("function", "class", "exception")
    ]
    if len(found) != 1:
        return None
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, shown)


def setup(app: Sphinx) -> None:
    """Write the reference, and connect what is above."""
    write_pages()
    handlers: dict[str, Callable[..., Any]] = {
        "autodoc-process-signature": shorten_signature,
        "source-read": insert_commands,
        "missing-reference": link_by_short_name,
    }
    for event, handler in handlers.items():
        app.connect(event, handler)
    for prepare in (describe_settings, name_singly):  # before napoleon reads sections
        app.connect("autodoc-process-docstring", prepare, priority=400)
