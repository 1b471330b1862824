"""Parsing of settings on the command line: `align.solver.regularisation=0.05`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from depfuse.errors import RecipeError
from depfuse.recipe.arrange import by_path, known_places, unknown
from depfuse.recipe.old_names import OLD
from depfuse.recipe.recipe import Recipe


def parsed(words: Iterable[str]) -> dict[str, Any]:
    """Read `path=value` words, each value as the kind that its setting has; of several with one path the last counts.

    Raises
    ------
    RecipeError
        A word has no value, names no setting, its value is of another kind, or two names of a setting have two values.
    """
    places = known_places(Recipe)
    settings: dict[str, Any] = {}
    for word in words:
        path, equals, text = (part.strip() for part in word.partition("="))
        if not equals:
            raise RecipeError(f"{word!r} sets nothing: write a setting and its value, like align.solver=sinkhorn")
        place = next((places[name][0] for name in OLD.get(path, (path,)) if name in places), None)
        if place is None:
            raise RecipeError(unknown(path, places))
        if place.registry is None:
            value = _value(path, text, place.field.annotation)
        else:
            value = _value(path, text, bool) if path == "universe" else text
        check_once({name: given for name, given in settings.items() if name != path}, {path: value})
        settings[path] = value
    return settings


def check_once(settings: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Raise `RecipeError` where two mappings from name to value give one setting two values."""
    first = by_path(settings)
    for path, value in by_path(others).items():
        if path in first and first[path] != value:
            raise RecipeError(f"{path} is set twice, to {first[path]} and to {value}: set it once")


def _value(path: str, text: str, kind: Any) -> Any:
    value: Any = text
    if text.lower() in ("none", "null") and type(None) in get_args(kind):
        return None
    if "tuple" in str(kind):
        value = text.split(",")
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise RecipeError(f"setting {path} {text!r}: {error.errors()[0]['msg']}") from None
