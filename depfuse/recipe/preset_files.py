"""Presets as they lie in files: their names, and what each file says."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from depfuse.errors import DepfuseWarning
from depfuse.recipe.arrange import by_path

PACKAGE = "depfuse.recipe.presets"
STORED = frozenset({"align", "merge", "refit", "renorm", "teach", "seed"})  # sections of a recipe that was stored
_MISSPELT = 0.75  # likeness to the name of a preset from which on another name is taken for it


class PlainLoader(yaml.SafeLoader):
    """Plain values without references to each other, which could be larger than any memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse a reference."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a name that is said twice."""
        without_repeated([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep=deep)


def without_repeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of names and values; raise `ValueError` where a name is said twice, lest the last one count."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is said twice")
        found[name] = value
    return found


def shipped(package: str, ending: str = ".json") -> list[str]:
    """Return the names of files that come with a package, in the order of the alphabet, without their ending."""
    names = (entry.name for entry in files(package).iterdir())
    return sorted(name.removesuffix(ending) for name in names if name.endswith(ending))


@cache
def preset_names() -> tuple[str, ...]:
    """Return the names of all presets in the order of the alphabet."""
    return tuple(shipped(PACKAGE, ".yaml"))


@cache
def preset_fields(name: str) -> Mapping[str, Any]:
    """Read the fields of a preset's file: its title, what it costs, and its settings."""
    fields: Mapping[str, Any] = yaml.load((files(PACKAGE) / f"{name}.yaml").read_text("utf-8"), PlainLoader)
    return fields


def over_preset(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Collection[str] | None]:
    """Put settings over those of the preset that they name; warn of a name that looks misspelt.

    Other names are free: a recipe of a user's file has the name of that.

    Returns
    -------
    dict
        Path -> value; the settings as they are where they name no preset.
    collection of str, or None
        Which of them were given, where they name a preset; None for all.
    """
    name = settings.get("preset")
    if not isinstance(name, str):
        return dict(settings), None
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1, cutoff=_MISSPELT)
        if near and not settings.keys() >= STORED:
            warnings.warn(
                f"there is no preset {name!r}, so that its settings are those of standard: did you mean {near[0]}?",
                DepfuseWarning,
                stacklevel=3,
            )
        return dict(settings), None
    settings_by_path = by_path(dict(settings))
    return {**by_path(preset_fields(name).get("settings") or {}), **settings_by_path}, list(settings_by_path)
