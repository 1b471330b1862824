"""Settings by path, by section or by old name -> the sections, and which of them nothing reads.

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
from depfuse.recipe.old_names import OLD, in_new_words, is_old
from depfuse.recipe.reads import Case, Values, cases_of, is_read, unmet

_DEEPEST = 5  # levels of a path


@dataclass(frozen=True)
class Place:
    """A setting where it can stand.

    Attributes
    ----------
    path
        `align.solver.regularisation`.
    case
        Choices -> the names by which it is there: `{"align.solver": ("sinkhorn",)}`.
    field, registry
        Its declaration, and the alternatives where it is a choice.
    """

    path: str
    case: dict[str, tuple[Any, ...]]
    field: FieldInfo
    registry: Registry | None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that there are, where it is one of a few."""
        if self.registry is not None:
            return tuple(self.registry)
        kind = self.field.annotation
        return (False, True) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()

    @property
    def default(self) -> Any:
        """Its value where nothing is said; of a choice the name."""
        found = self.field.default
        return found.name if isinstance(found, Choice) else found


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
        As a model takes them; only what was said and is read.
    values
        Path -> value of all settings that there are then, the defaults too; of a choice its name.
    given
        Path -> value of those that were said and are read.
    """

    nested: dict[str, Any]
    values: Values = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)


def arrange(model: type[Section], settings: Mapping[str, Any], keep: Collection[str] | None = None) -> Arranged:
    """Put settings in their sections.

    Parameters
    ----------
    model
        The recipe.
    settings
        By section, path or old name.
    keep
        Those that are refused where nothing reads them, all where None; the others are left out then.

    Raises
    ------
    ValueError
        A setting is unknown, no alternative, or not read although it is to be kept.
    """
    settings = in_new_words(settings)
    given: dict[str, Any] = {}
    said: dict[str, str] = {}  # path -> what it was called
    kept: set[str] = set()
    known = known_places(model)
    for name, value in settings.items():
        if not any(path == name or path.startswith(f"{name}.") for path in (*known, *OLD)):
            raise ValueError(unknown(name, known))
        known_as = dict.fromkeys(OLD[name], value) if is_old(name, value) else dict(_leaves(name, value))
        for path, own in known_as.items():
            if path not in known:
                raise ValueError(unknown(path, known))
            given[path], said[path] = own, name if is_old(name, value) else path
            kept = kept | {path} if keep is None or name in keep else kept - {path}
    while True:
        found = _by_sections(model, given)
        dropped = [path for path in given if not is_read(path, found.values)]
        for path in dropped:
            elsewhere = any(said[other] == said[path] and other not in dropped for other in given)
            usual = (path in found.values or said[path] in OLD) and _is_usual(path, given[path], known)
            if path in kept and not elsewhere and not usual:
                raise ValueError(_ignored(path, given[path], said[path], found.values, known))
        if not dropped:
            return Arranged(found.nested, found.values, given)
        for path in dropped:
            del given[path]


def by_path(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return path -> value of settings by section, path or old name, at every place that an old name stands for."""
    found: dict[str, Any] = {}
    for name, value in in_new_words(settings).items():
        found |= dict.fromkeys(OLD[name], value) if is_old(name, value) else dict(_leaves(name, value))
    return found


def unusual(model: type[Section], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return path -> value of what is unusual in a stored recipe, and of what is not known here."""
    known = known_places(model)
    found: dict[str, Any] = {}
    for name, value in in_new_words(stored).items():
        own = {OLD[name][0]: value} if is_old(name, value) else dict(_leaves(name, value))
        found |= {path: one for path, one in own.items() if path not in known or not _is_usual(path, one, known)}
    return found


def may_be_read(model: type[Section], path: str, fixed: Mapping[str, Any]) -> bool:
    """Whether anything reads a setting for some values of those that are not fixed."""
    cases = [case for place in known_places(model)[path] for case in _whole_cases(place)]
    return any(all(fixed[name] in allowed for name, allowed in case.items() if name in fixed) for case in cases)


def leaves(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return path -> value of all settings of a built model; of a choice its name, before its settings."""
    found: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Choice):
            found[f"{prefix}{name}"] = value.name
        if isinstance(value, Section):
            found |= leaves(value, f"{prefix}{name}.")
        elif not (name == "name" and isinstance(model, Choice)):
            found[f"{prefix}{name}"] = value
    return found


def known_places(model: type[Section]) -> dict[str, list[Place]]:
    """Return path -> where that setting can stand."""
    found: dict[str, list[Place]] = {}
    for place in places(model):
        found.setdefault(place.path, []).append(place)
    return found


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings in a value: of a section or choice all that it says, of a path itself."""
    if isinstance(value, Choice):
        yield path, value.name
    if isinstance(value, Section):
        value = {name: getattr(value, name) for name in type(value).model_fields if name != "name"}
    if not isinstance(value, Mapping) or path.count(".") > _DEEPEST:
        yield path.removesuffix(".name"), value
        return
    for name, own in value.items():
        yield from _leaves(f"{path}.{name}", own)


def _by_sections(model: type[Section], given: Mapping[str, Any], prefix: str = "") -> Arranged:
    nested: dict[str, Any] = {}
    values: Values = {}
    for name, info in model.model_fields.items():
        path, registry, section = f"{prefix}{name}", registry_of(info), section_of(info)
        if section is not None:
            below = _by_sections(section, given, f"{path}.")
            if below.nested:
                nested[name] = below.nested
            values |= below.values
        elif registry is not None:
            usual = info.default.name
            chosen = given.get(path, usual)
            if not isinstance(chosen, str) or chosen not in registry:
                raise ValueError(f"setting {path}: {chosen!r} is none of {', '.join(registry)}")
            below = _by_sections(registry[chosen], given, f"{path}.")
            if below.nested or path in given:
                nested[name] = {"name": chosen, **below.nested}
            values |= {path: chosen, **below.values}
        elif name == "name" and issubclass(model, Choice):
            continue
        else:
            values[path] = given.get(path, info.default)
            if path in given:
                nested[name] = given[path]
    return Arranged(nested, values)


def _is_usual(path: str, value: Any, known: Mapping[str, list[Place]]) -> bool:
    return any(value == place.default for place in known[path])


def _ignored(path: str, value: Any, name: str, values: Values, known: Mapping[str, list[Place]]) -> str:
    paths = OLD.get(name, (path,))
    cases = [case for own in paths for place in known[own] for case in _whole_cases(place)]
    return f"{name} {value} would be ignored: it needs {unmet(cases, values)}; leave {name} out, or change that"


def _whole_cases(place: Place) -> Iterator[Case]:
    """Yield the cases in which a setting is there and read."""
    for case in cases_of(place.path) or ({},):
        found: dict[str, Any] = {**place.case, **case}
        for path in place.case.keys() & case.keys():
            found[path] = tuple(name for name in place.case[path] if name in case[path])
        if () not in found.values():
            yield found


def unknown(path: str, known: Mapping[str, list[Place]]) -> str:
    """Say that there is no such setting, and which may be meant."""
    near = difflib.get_close_matches(path, [*known, *OLD], n=1)
    if not near:  # a last word alone
        last = path.rpartition(".")[2]
        ends = {other.rpartition(".")[2]: other for other in known}
        near = [ends[word] for word in difflib.get_close_matches(last, ends, n=1)]
    meant = f"did you mean {near[0]}?" if near else "`depfuse settings` lists all settings"
    return f"there is no setting {path!r}: {meant}"
