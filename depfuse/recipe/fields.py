"""Fields of settings: default, unit, source and search range, in one place.

The smallest example::

    regularisation: float = setting(0.01, "of the entropy, relative to the cost's scale", gt=0.0,
                                    search=Between(0.001, 1.0, log=True))

`depfuse settings` prints these fields, and a study draws from their ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Between:
    """Range of a number from `low` to `high` inclusive; whole if both are; `log` draws its logarithm uniformly."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class OneOf:
    """Choice of one of some values, or of all values of the setting if none are given.

    Attributes
    ----------
    options
        The values.
    by
        Path of another setting, and a function from its value to a label and the options, where these depend on it; the
        label distinguishes distributions. Without options the setting is not drawn.
    """

    options: tuple[Any, ...] = ()
    by: tuple[str, Callable[[Any], tuple[str, tuple[Any, ...]]]] | None = None


@dataclass(frozen=True)
class Ratios:
    """Range of shares that sum to one, each that of the first parent times a number from `1 / most` to `most`.

    A search without this limit would keep the better parent instead of merging.
    """

    most: float


Search = Between | OneOf | Ratios
MOST_STEPS = 1_000_000  # of any iteration; whoever writes more typed a digit too many


def setting(
    default: Any, description: str, *, unit: str = "", source: str = "", search: Search | None = None, **limits: Any
) -> Any:
    """Declare a field.

    Args:
        default: default value.
        description: half a sentence.
        unit: unit of the number.
        source: publication of the method or the value.
        search: range that a study draws from; None if it does not change the setting.
        limits: of pydantic's `Field`: gt, ge, le.
    """
    extra: Any = {name: value for name, value in (("unit", unit), ("source", source), ("search", search)) if value}
    return Field(default, description=description, json_schema_extra=extra or None, **limits)


def searched(field: FieldInfo) -> Search | None:
    """Return the search range of a field; None if it has none."""
    search = about(field).get("search")
    return search if isinstance(search, (Between, OneOf, Ratios)) else None


def about(field: FieldInfo) -> dict[str, Any]:
    """Return those of unit, source and search range that a field has."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


class Section(BaseModel):
    """Settings that belong together: frozen, of known names, with finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choice(Section):
    """One of several alternatives, identified by its name, with its own settings."""

    name: str

    @classmethod
    def called(cls) -> str:
        """Return the name of the alternative."""
        return str(cls.model_fields["name"].default)


def first_mistake(error: ValidationError) -> tuple[str, str]:
    """Return the path of the first mistake and its message."""
    first = error.errors()[0]
    inner = first.get("ctx", {})
    where = [*map(str, first["loc"]), *filter(None, [inner.get("where")])]
    if first["type"] in ("tuple_type", "list_type"):  # YAML and users know lists alone
        return ".".join(where), f"it must be a list, not {first['input']!r}"
    return ".".join(where), inner.get("message") or str(first["msg"]).removeprefix("Value error, ")


class Registry:
    """Registry of the alternatives of a choice, by name; a new one is a class and a call of `add`."""

    def __init__(self, *kinds: type[Choice]) -> None:
        self._kinds = {kind.called(): kind for kind in kinds}

    def add(self, kind: type[Choice]) -> None:
        """Register another alternative."""
        self._kinds[kind.called()] = kind

    def __getitem__(self, name: str) -> type[Choice]:
        return self._kinds[name]

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def items(self) -> list[tuple[str, type[Choice]]]:
        """Return all names with their classes."""
        return list(self._kinds.items())

    def __call__(self, value: Any) -> Any:
        """Build an alternative from its name, or from a mapping with its name and settings (pydantic's validator)."""
        if isinstance(value, Choice):
            return value
        fields = {"name": value} if isinstance(value, str) else value
        if not isinstance(fields, dict) or fields.get("name") not in self._kinds:
            named = fields.get("name") if isinstance(fields, dict) else value
            raise ValueError(f"{named!r} is none of {', '.join(self._kinds)}")
        try:
            return self._kinds[fields["name"]](**fields)
        except ValidationError as error:
            where, message = first_mistake(error)
            raise PydanticCustomError("alternative", "{message}", {"where": where, "message": message}) from None


def registry_of(field: FieldInfo) -> Registry | None:
    """Return the registry of a field that is a choice; None for a plain value or a section."""
    validators = (entry.func for entry in field.metadata if isinstance(entry, BeforeValidator))
    return next((validator for validator in validators if isinstance(validator, Registry)), None)


def section_of(field: FieldInfo) -> type[Section] | None:
    """Return the class of a field that is a section; None for others."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) and registry_of(field) is None else None
