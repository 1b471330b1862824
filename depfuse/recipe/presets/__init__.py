"""Presets by name: YAML files in this folder, each with a title, its cost or publication, and a few settings.

The smallest example, `git-re-basin.yaml`, would do with a few lines::

    title: Git Re-Basin
    paper: S. K. Ainsworth et al., 2023, ...
    settings:
      align: {criterion: weights, solver: coordinate-descent}

A user's file has the same form, and may also name parents and data, so that it is a whole command.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from depfuse.errors import RecipeError
from depfuse.recipe.arrange import arrange, by_path
from depfuse.recipe.other_words import check_words
from depfuse.recipe.preset_files import STORED, PlainLoader, over_preset, preset_fields, preset_names, without_repeated
from depfuse.recipe.recipe import Recipe

ENDINGS = (".yaml", ".yml", ".json")
ABOUT = ("title", "paper", "differs", "cost")
# Arguments of a command that a file may hold.
RUN = ("parents", "arch", "key", "data", "size", "mean", "std", "crop", "classes", "background", "out", "report")
_UNNAMED = 'in "<unicode string>", '  # what YAML's reader calls a text
_LARGEST = 2**26  # characters, of a recipe or a report that holds one
_WHOLE_FLAT = frozenset({"criterion", "solver", "weights", "reference", "order", "refit", "seed"})  # a stored recipe


@dataclass(frozen=True)
class Preset:
    """A few settings under a name.

    Attributes
    ----------
    name
        Its name.
    title
        What it does.
    paper, differs
        Of a published method: the publication, and what differs from it here.
    cost
        Of the others: their cost and benefit.
    settings
        Of a `Recipe`, in its sections; all others have their defaults.
    """

    name: str
    title: str
    paper: str = ""
    differs: str = ""
    cost: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """The settings as a recipe."""
        return Recipe.create({**self.settings, "preset": self.name})


@dataclass(frozen=True)
class Source:
    """Content of a preset, a file or a report.

    Attributes
    ----------
    settings
        Path -> value, with the name of the preset.
    run
        Arguments of the command: parents, data and files to write.
    """

    settings: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    """Return the names of all presets in the order of the alphabet."""
    return list(preset_names())


def published() -> list[str]:
    """Return the names of the published methods among them."""
    return [name for name in names() if preset(name).paper]


@cache
def preset(name: str) -> Preset:
    """Read a preset.

    Raises
    ------
    RecipeError
        There is no preset of that name; the message lists all.
    """
    names_known = names()
    if name not in names_known:
        near = difflib.get_close_matches(name, names_known, n=1)
        meant = f"did you mean {near[0]}? There are" if near else "give a file, or one of"
        raise RecipeError(f"there is no recipe {name!r}: {meant} {', '.join(names_known)}")
    return Preset(name, **preset_fields(name))


def read_settings(source: str) -> dict[str, Any]:
    """Read the settings of a preset or a file; see `read`."""
    return read(source).settings


def read(source: str) -> Source:
    """Read the settings of a preset by its name, or those in a YAML or JSON file.

    A file may look like those here, with parents and data beside the settings if need be. It may also be an object
    whose `recipe` holds the settings, such as the report of an earlier run, or hold nothing but settings.

    Raises
    ------
    RecipeError
        There is no such name or file, the file holds no settings, or these are unknown or contradictory.
    """
    if source in names() or not _is_file(source):
        return Source(_checked(source, {**preset(source).settings, "preset": source}, None))
    content = _content(source)
    settings, run, stored = _parts(content)
    if settings is None:
        raise RecipeError(f"recipe {source} is no object of settings, such as refit: none, or align: {{solver: emd}}")
    if stored and settings.keys() >= _WHOLE_FLAT and "parents_from" not in settings:
        settings = {**settings, "parents_from": 0}  # written when parents counted from 0
    keep: Collection[str] = ()
    if not stored:
        check_words(source, content)
        _check_preset(source, settings)
        settings, changed = over_preset(settings)
        keep = list(settings) if changed is None else changed
    settings = {"preset": "standard" if stored else _name_of(source, settings), **settings}
    return Source(_checked(source, settings, keep), run)


def as_recipe(source: Recipe | str | Path | Mapping[str, Any] | None) -> Recipe:
    """Read a recipe from a preset's name, a file, or settings that may name a preset; the default of None.

    Raises
    ------
    RecipeError
        See `read`; or the file names parents or data, which are arguments in Python.
    """
    if source is None or isinstance(source, Recipe):
        return source or Recipe()
    if isinstance(source, (str, Path)):
        source_read = read(str(source))
        if source_read.run:
            raise RecipeError(
                f"{source} names {', '.join(source_read.run)}, which is for the command line: give arguments"
            )
        return Recipe.with_read(source_read.settings)
    if not source.keys() >= STORED:
        _check_preset("settings", source)
    return Recipe.create(source)


def _check_preset(source: str, settings: Mapping[str, Any]) -> None:
    """Raise `RecipeError` where settings name a preset that there is not: a recipe that a run stored may, these not."""
    name = settings.get("preset")
    if name is None or name in names():
        return
    try:
        preset(str(name))
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def _name_of(source: str, settings: Mapping[str, Any]) -> str:
    """Name a file's recipe: its stem, unless that is a preset of other settings."""
    path = Path(source)
    if path.stem in names() and by_path(dict(settings)) != by_path(preset(path.stem).settings):
        return path.name
    return path.stem


def _is_file(source: str) -> bool:
    return source.endswith(ENDINGS) or os.sep in source or Path(source).is_file()


def _content(source: str) -> Any:
    kind = "JSON" if source.endswith(".json") else "YAML"
    try:
        with Path(source).open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise RecipeError(f"recipe {source} is larger than any recipe or report")
        if kind == "JSON":
            return json.loads(text, object_pairs_hook=without_repeated)
        if text.startswith("{"):
            with suppress(json.JSONDecodeError):  # a mapping of YAML may begin so, too
                return json.loads(text, object_pairs_hook=without_repeated)
        return yaml.load(text, PlainLoader)
    except OSError as error:
        raise RecipeError(f"recipe {source} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise RecipeError(f"recipe {source} is nested too deeply to be a recipe") from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"recipe {source} is not YAML{_where(error)}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise RecipeError(
            f"recipe {source} is not {kind}: {' '.join(str(error).replace(_UNNAMED, 'at ').split())}"
        ) from None


def _where(error: yaml.MarkedYAMLError) -> str:
    """Say what is wrong in which line and column, and where what it stands in begins."""
    wrong, begun = error.problem_mark, error.context_mark
    place = "" if wrong is None else f" in line {wrong.line + 1}, column {wrong.column + 1}"
    said = f"{place}: {error.problem or error.context}"
    if begun is None or wrong is None or (begun.line, begun.column) == (wrong.line, wrong.column):
        return said
    doing = (error.context or "").removeprefix("while ")
    return f"{said}, {doing + ' ' if doing else ''}that begins in line {begun.line + 1}, column {begun.column + 1}"


def _checked(source: str, settings: Mapping[str, Any], keep: Collection[str] | None) -> dict[str, Any]:
    """Return path -> value of the settings that are given and read; unread ones in `keep` raise an error."""
    try:
        recipe = Recipe.with_read(settings, keep)
        settings_read = arrange(Recipe, settings, keep).given
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None
    values = recipe.settings
    return {path: values[path] for path in settings_read}


def _parts(content: Any) -> tuple[dict[str, Any] | None, dict[str, Any], bool]:
    """Split a file's content: its settings (None if there are none), arguments of the run, whether a run wrote it."""
    stored = False
    run: dict[str, Any] = {}
    if isinstance(content, dict) and "settings" in content and content.keys() <= {*ABOUT, *RUN, "preset", "settings"}:
        run = {name: content[name] for name in RUN if name in content}
        inner = content["settings"] or {}
        if isinstance(inner, dict) and "preset" in content:
            inner = {**inner, "preset": content["preset"]}
        content = inner
    elif isinstance(content, dict) and "recipe" in content:
        stored = len(content) > 1
        content = content["recipe"]
    elif isinstance(content, dict):
        run = {name: content[name] for name in RUN if name in content}
        content = {name: value for name, value in content.items() if name not in (*RUN, *ABOUT)}
    if not isinstance(content, dict):
        return None, run, stored
    return content, run, stored or content.keys() >= _WHOLE_FLAT or content.keys() >= STORED
