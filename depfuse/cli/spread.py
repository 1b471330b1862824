"""Options made of the fields of descriptions.

`spread` lets a command take whole descriptions (a `Recipe`, the options about data) as parameters; on the command line
each of their fields is an option. So a setting is declared once, with its default and its help, where it belongs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from depfuse.cli.help import Further, marked, with_help_all
from depfuse.errors import RecipeError

SHORT_FLAGS = {"learning_rate": ("--lr",)}


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that describes several settings by one option per setting.

    Such a parameter is annotated with a dataclass, whose fields are annotated as parameters would be; with
    `Annotated[Dataclass, Further("field", ...)]`, where this command leaves some of them to `--help-all`; with
    a pydantic model, which has a class method `create` that says in a `DepfuseError` what is wrong; or with
    `Annotated[dict[str, Any], Model, "field", ...]`, for which the command gets the settings that the user
    gave, to build the model when it has seen the images, on which the defaults of the named fields depend; a
    `Further` may stand there, too.
    """
    hints = get_type_hints(command, include_extras=True)
    plain: list[inspect.Parameter] = []
    builders: dict[str, Callable[[dict[str, Any]], Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        annotation = hints[name]
        kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
        further = [field for note in notes if isinstance(note, Further) for field in note.fields]
        model = next((one for one in (kind, *notes) if isinstance(one, type) and issubclass(one, BaseModel)), None)
        if model is not None:
            own = [_option(field, info, field in notes) for field, info in _options_of(model).items()]
            builders[name] = functools.partial(_create if model is kind else _given, model)
        elif dataclasses.is_dataclass(kind):
            own = _fields(kind)
            builders[name] = functools.partial(_build, kind)
        else:
            own = []
            plain.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
        plain += [one.replace(annotation=marked(one.annotation)) if one.name in further else one for one in own]
    plain = with_help_all(plain)

    @functools.wraps(command)
    def spread_out(help_all: bool = False, **values: Any) -> None:  # its callback has answered --help-all by now
        built = {name: build(values) for name, build in builders.items()}
        command(**values, **built)

    spread_out.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    spread_out.__annotations__ = {parameter.name: parameter.annotation for parameter in plain}
    return spread_out


def _build(kind: Any, values: dict[str, Any]) -> Any:
    return kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})


def _create(model: Any, values: dict[str, Any]) -> Any:
    return model.create(**_given(model, values))


def _given(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of a model out of the values; those that the user did not give are left out."""
    settings = {}
    for name, info in _options_of(model).items():
        value = values.pop(name)
        if value is not None:
            is_numbers = isinstance(value, str) and _is_numbers(info.annotation)
            settings[name] = numbers(_flag(name), value) if is_numbers else value
    return settings


def _options_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """List the fields that are options: all but those marked otherwise."""
    hidden = {"option": False}
    return {name: info for name, info in model.model_fields.items() if info.json_schema_extra != hidden}


def _fields(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(kind)
    ]


def _option(name: str, info: FieldInfo, depends_on_images: bool) -> inspect.Parameter:
    """Make the option of one field; its value is checked by the model, which says why it is wrong."""
    kind, metavar = _on_the_command_line(info.annotation)
    flags = [_flag(name), *SHORT_FLAGS.get(name, ())]
    if kind is bool:
        flags = [f"{_flag(name)}/--no-{name.replace('_', '-')}"]
    default = "what suits the images" if depends_on_images else _written(info.default)
    option = typer.Option(
        *flags,
        metavar=metavar,
        help=_sentence(info.description or "") + (f"  [default: {default}]" if default else ""),
    )
    # None stands for a setting that was not given: its default is the model's affair.
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _sentence(text: str) -> str:
    first = text.split(" ")[0]
    return f"{text[:1].upper() if first.isalpha() else text[:1]}{text[1:]}."


def _written(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _on_the_command_line(annotation: Any) -> tuple[Any, str | None]:
    """Return the type that Typer reads, and how the value is written in the help."""
    (kind,) = [member for member in _members(annotation) if member is not type(None)]
    if get_origin(kind) is Literal:
        return str, f"[{'|'.join(map(str, get_args(kind)))}]"
    return (str, "X,Y,...") if _is_numbers(kind) else (kind, None)


def _is_numbers(annotation: Any) -> bool:
    return any(get_origin(member) is tuple for member in _members(annotation))


def _members(annotation: Any) -> tuple[Any, ...]:
    """List the members of a union, or the type itself."""
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read `0.5,0.5`; a `RecipeError` names the option when there is something else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"{option} {text!r} must be numbers with commas between them, like 0.5,0.5") from None
