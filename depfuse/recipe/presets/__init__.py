"""Published methods by name: each a JSON file here, with its paper and a few settings of a `Recipe`.

The smallest example, `git-re-basin.json`, would do with three lines:

    {"title": "Git Re-Basin", "paper": "S. K. Ainsworth et al., 2023: ...",
     "settings": {"criterion": "weights", "solver": "coordinate-descent"}}
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from depfuse.errors import RecipeError
from depfuse.recipe.recipe import Recipe

ABOUT = ("title", "paper", "differs")
_LARGEST = 2**26  # characters, of a recipe or a report that holds one
WHOLE = frozenset({"criterion", "solver", "weights", "reference", "order", "refit", "seed"})  # of a stored recipe


@dataclass(frozen=True)
class Published:
    """A published method.

    Attributes
    ----------
    name
        What it is asked for by.
    title, paper
        What it is, and who published it where.
    differs
        One sentence on what is done otherwise than in the paper; empty where nothing is.
    settings
        Fields of a `Recipe`; all others have their defaults.
    """

    name: str
    title: str
    paper: str
    differs: str
    settings: Mapping[str, Any]

    @property
    def recipe(self) -> Recipe:
        """The settings as a recipe."""
        return Recipe.create(**self.settings)


def names() -> list[str]:
    """Names of all published methods, in the order of the alphabet."""
    return shipped(__name__)


def shipped(package: str) -> list[str]:
    """Names of the JSON files that come with a package, in the order of the alphabet, without their ending."""
    found = (entry.name for entry in files(package).iterdir())
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))


def published(name: str) -> Published:
    """A published method by its name.

    Raises
    ------
    RecipeError
        There is none of that name; the sentence lists those that there are.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? There are" if near else "give a file, or one of"
        raise RecipeError(f"there is no recipe {name!r}: {meant} {', '.join(known)}")
    fields = json.loads((files(__name__) / f"{name}.json").read_text(encoding="utf-8"))
    return Published(name, fields["title"], fields["paper"], fields.get("differs", ""), fields["settings"])


def read_settings(source: str) -> dict[str, Any]:
    """Settings of a published method by its name, or those in a JSON file.

    A file may look like those here. It may also be an object whose `recipe` holds the settings, such as the report of
    an earlier run, or hold nothing but settings.

    Raises
    ------
    RecipeError
        There is no such name or file, the file is no JSON object, or its settings are unknown or contradictory.
    """
    is_file = source.endswith(".json") or os.sep in source or Path(source).is_file()
    if source in names() or not is_file:
        return dict(published(source).settings)
    try:
        with Path(source).open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise RecipeError(f"recipe {source} is larger than any recipe or report")
        found = json.loads(text)
    except OSError as error:
        raise RecipeError(f"recipe {source} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise RecipeError(f"recipe {source} is not JSON: {error}") from None
    except RecursionError:
        raise RecipeError(f"recipe {source} is nested too deeply to be a recipe") from None
    settings, stored = _settings_in(found)
    if settings is None:
        raise RecipeError(f'recipe {source} is no object of settings, such as {{"solver": "emd"}}')
    for name in settings:
        if name not in Recipe.model_fields:
            near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
            meant = f"; did you mean {near[0]}?" if near else ": `depfuse fuse --help` lists all settings"
            raise RecipeError(f"recipe {source} has an unknown setting {name!r}{meant}")
    if stored and "parents_from" not in settings:
        # Written when parents counted from 0, and when settings that nothing reads were let pass.
        settings = {**settings, "parents_from": 0}
        kept: Mapping[str, Any] = {}
    else:
        kept = settings
    try:
        recipe = Recipe.with_read(settings, keep=kept)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None
    return {name: getattr(recipe, name) for name in settings if name != "parents_from"}


def _settings_in(found: Any) -> tuple[dict[str, Any] | None, bool]:
    """The settings in what a file holds, None where there are none, and whether a run stored them."""
    stored = False
    if isinstance(found, dict) and "settings" in found and found.keys() <= {*ABOUT, "settings"}:
        found = found["settings"]
    elif isinstance(found, dict) and "recipe" in found:
        stored = len(found) > 1
        found = found["recipe"]
    if not isinstance(found, dict):
        return None, stored
    return found, stored or found.keys() >= WHOLE
