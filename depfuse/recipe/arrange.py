"""Arrangement of settings given by path, by section or by old name, without those that nothing reads.

The smallest example: `{"align.solver": "sinkhorn", "regularisation": 0.1}` is
`{"align": {"solver": {"name": "sinkhorn", "regularisation": 0.1}}}`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from depfuse.recipe.fields import Choice, Registry, Section, registry_of, section_of
from depfuse.recipe.old_names import OLD, in_current_names, is_old
from depfuse.recipe.reads import Case, Values, cases_of, is_read, unmet

_DEEPEST = 5  # levels of a path


@dataclass(frozen=True)
class Place:
    """A place of a setting in the sections.

    Attributes
    ----------
    path
        `align.solver.regularisation`.
    case
        Choices -> the alternatives that have this setting: `{"align.solver": ("sinkhorn",)}`.
    field, registry
        Its declaration, and the alternatives where it is a choice.
    """

    path: str
    case: dict[str, tuple[Any, ...]]
    field: FieldInfo
    registry: Registry | None

    @property
    def choices(self) -> tuple[Any, ...]:
        """Possible values, where they are few."""
        if self.registry is not None:
            return tuple(self.registry)
        kind = self.field.annotation
        return (False, True) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()

    @property
    def default(self) -> Any:
        """Default value; of a choice its name."""
        default = self.field.default
        return default.name if isinstance(default, Choice) else default


def places(
    model: type[Section], prefix: str = "", case: Mapping[str, tuple[Any, ...]] | None = None
) -> Iterator[Place]:
    """Yield all settings of a model in their order, those of every alternative too."""
    for name, info in model.model_fields.items():
        path, registry, section = f"{prefix}{name}", registry_of(info), section_of(info)
        if section is not None:
            yield from places(section, f"{path}.", case)
        elif registry is not None:
            yield Place(path, dict(case or {}), info, registry)
            for chosen, kind in registry.items():
                yield from places(kind, f"{path}.", {**(case or {}), path: (chosen,)})
        elif not (name == "name" and issubclass(model, Choice)):
            yield Place(path, dict(case or {}), info, None)


@dataclass
class Arranged:
    """Settings in their sections.

    Attributes
    ----------
    nested
        By section, as a model takes them; only those that were given and are read.
    values
        Path -> value of all settings of the chosen alternatives, defaults included; of a choice its name.
    given
        Path -> value of those that were given and are read.
    """

    nested: dict[str, Any]
    values: Values = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)


def arrange(model: type[Section], settings: Mapping[str, Any], keep: Collection[str] | None = None) -> Arranged:
    """Arrange settings in their sections.

    Parameters
    ----------
    model
        The recipe.
    settings
        By section, path or old name.
    keep
        Names of settings that raise an error where nothing reads them, all if None; other unread ones are left out.

    Raises
    ------
    ValueError
        A setting or alternative is unknown, or a setting to be kept is read by nothing.
    """
    settings = in_current_names(settings)
    values: dict[str, Any] = {}
    name_of: dict[str, str] = {}  # path -> the name it was given by
    must_be_read: set[str] = set()
    places = known_places(model)
    for name, value in settings.items():
        if not any(path == name or path.startswith(f"{name}.") for path in (*places, *OLD)):
            raise ValueError(unknown(name, places))
        current = dict.fromkeys(OLD[name], value) if is_old(name, value) else dict(_leaves(name, value))
        for path, setting in current.items():
            if path not in places:
                raise ValueError(unknown(path, places))
            values[path], name_of[path] = setting, name if is_old(name, value) else path
            must_be_read = must_be_read | {path} if keep is None or name in keep else must_be_read - {path}
    while True:
        arranged = _by_sections(model, values)
        dropped = [path for path in values if not is_read(path, arranged.values)]
        for path in dropped:
            elsewhere = any(name_of[other] == name_of[path] and other not in dropped for other in values)
            usual = (path in arranged.values or name_of[path] in OLD) and _is_usual(path, values[path], places)
            if path in must_be_read and not elsewhere and not usual:
                raise ValueError(_ignored(path, values[path], name_of[path], arranged.values, places))
        if not dropped:
            return Arranged(arranged.nested, arranged.values, values)
        for path in dropped:
            del values[path]


def by_path(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten settings by section, path or old name to path -> value, at every path that an old name stands for."""
    values: dict[str, Any] = {}
    for name, value in in_current_names(settings).items():
        values |= dict.fromkeys(OLD[name], value) if is_old(name, value) else dict(_leaves(name, value))
    return values


def unusual(model: type[Section], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings of a stored recipe that differ from the defaults or are unknown, as path -> value."""
    places = known_places(model)
    settings: dict[str, Any] = {}
    for name, value in in_current_names(stored).items():
        current = {OLD[name][0]: value} if is_old(name, value) else dict(_leaves(name, value))
        settings |= {
            path: one for path, one in current.items() if path not in places or not _is_usual(path, one, places)
        }
    return settings


def may_be_read(model: type[Section], path: str, fixed: Mapping[str, Any]) -> bool:
    """Tell whether a setting is read for some values of those that are not fixed."""
    cases = [case for place in known_places(model)[path] for case in _whole_cases(place)]
    return any(all(fixed[name] in allowed for name, allowed in case.items() if name in fixed) for case in cases)


def leaves(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return path -> value of all settings of a built model; of a choice its name, before its settings."""
    values: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Choice):
            values[f"{prefix}{name}"] = value.name
        if isinstance(value, Section):
            values |= leaves(value, f"{prefix}{name}.")
        elif not (name == "name" and isinstance(model, Choice)):
            values[f"{prefix}{name}"] = value
    return values


def known_places(model: type[Section]) -> dict[str, list[Place]]:
    """Map path -> places of that setting."""
    places_by_path: dict[str, list[Place]] = {}
    for place in places(model):
        places_by_path.setdefault(place.path, []).append(place)
    return places_by_path


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings in a value: those of a section or choice, or the value itself."""
    if isinstance(value, Choice):
        yield path, value.name
    if isinstance(value, Section):
        value = {name: getattr(value, name) for name in type(value).model_fields if name != "name"}
    if not isinstance(value, Mapping) or path.count(".") > _DEEPEST:
        yield path.removesuffix(".name"), value
        return
    for name, inner in value.items():
        yield from _leaves(f"{path}.{name}", inner)


def _by_sections(model: type[Section], settings: Mapping[str, Any], prefix: str = "") -> Arranged:
    nested: dict[str, Any] = {}
    values: Values = {}
    for name, info in model.model_fields.items():
        path, registry, section = f"{prefix}{name}", registry_of(info), section_of(info)
        if section is not None:
            below = _by_sections(section, settings, f"{path}.")
            if below.nested:
                nested[name] = below.nested
            values |= below.values
        elif registry is not None:
            usual = info.default.name
            chosen = settings.get(path, usual)
            if not isinstance(chosen, str) or chosen not in registry:
                raise ValueError(f"setting {path}: {chosen!r} is none of {', '.join(registry)}")
            below = _by_sections(registry[chosen], settings, f"{path}.")
            if below.nested or path in settings:
                nested[name] = {"name": chosen, **below.nested}
            values |= {path: chosen, **below.values}
        elif name == "name" and issubclass(model, Choice):
            continue
        else:
            values[path] = settings.get(path, info.default)
            if path in settings:
                nested[name] = settings[path]
    return Arranged(nested, values)


def _is_usual(path: str, value: Any, places: Mapping[str, list[Place]]) -> bool:
    return any(value == place.default for place in places[path])


def _ignored(path: str, value: Any, name: str, values: Values, places: Mapping[str, list[Place]]) -> str:
    paths = OLD.get(name, (path,))
    cases = [case for current in paths for place in places[current] for case in _whole_cases(place)]
    return f"{name} {value} would be ignored: it needs {unmet(cases, values)}; leave {name} out, or change that"


def _whole_cases(place: Place) -> Iterator[Case]:
    """Yield the cases in which a setting exists and is read."""
    for case in cases_of(place.path) or ({},):
        whole: dict[str, Any] = {**place.case, **case}
        for path in place.case.keys() & case.keys():
            whole[path] = tuple(name for name in place.case[path] if name in case[path])
        if () not in whole.values():
            yield whole


def unknown(path: str, places: Mapping[str, list[Place]]) -> str:
    """Write the error message for an unknown setting, with those of the section or a similar one if there is."""
    if own := [other for other in places if other.startswith(f"{path}.")]:
        return f"{path!r} is a section: set one of {', '.join(own[:9])}"
    near = difflib.get_close_matches(path, [*places, *OLD], n=1)
    if not near:  # a last word alone
        last = path.rpartition(".")[2]
        ends = {other.rpartition(".")[2]: other for other in places}
        near = [ends[word] for word in difflib.get_close_matches(last, ends, n=1)]
    meant = f"did you mean {near[0]}?" if near else "`depfuse settings` lists all settings"
    return f"there is no setting {path!r}: {meant}"
