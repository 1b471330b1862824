"""Options that commands share, and options made from the fields of a recipe.

`spread` lets a command take whole descriptions (a `Recipe`, the options about data) as parameters; on the
command line each of their fields is an option. So a setting is declared once, with its default and its
help, where it belongs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from depfuse.cli.help import FURTHER, Further, marked, with_help_all
from depfuse.cli.run_file import RunFile
from depfuse.errors import RecipeError
from depfuse.recipe import Recipe
from depfuse.recipe.arrange import by_path
from depfuse.recipe.paths import parsed
from depfuse.recipe.presets import Source, read

_NAMING = (
    "NAME of a built-in network, torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:FACTORY or MODULE:FACTORY,"
    " each with (key=value, ...) if need be"
)
_FROM_CARDS = "Default: what the checkpoints' cards say."

Architecture = Annotated[str, typer.Argument(metavar="ARCH", help=f"{_NAMING}.")]
Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        metavar="CHECKPOINT", help="Files or folders with weights: .safetensors, .pt, ... (`inspect` shows)"
    ),
]
ArchitectureOption = Annotated[
    str | None,
    typer.Option("--arch", metavar="ARCH", help=f"What the networks are: {_NAMING}. {_FROM_CARDS}"),
]
TrustOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        rich_help_panel=FURTHER,
        help="Take what the card in this checkpoint says as your own words: the FILE.py or MODULE that it names as its"
        " network is imported and run, and the file or folder that it names as its data is opened. For files that you"
        " made yourself; may be given again. Default: no file is trusted, and reading one runs no code.",
    ),
]
KeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="NAME",
        rich_help_panel=FURTHER,
        help="Which weights of a file that holds several, by the key that `depfuse inspect` shows, such as"
        " state_dict_ema, or model.net with dots for depth; once, or once per file. Default: those with the network's"
        " names, and of several an average of steps (EMA).",
    ),
]
ReportOption = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write everything that was found as JSON.")
]
AllowFixed = Annotated[
    bool | None,
    typer.Option(
        "--allow-fixed/--no-fixed",
        rich_help_panel=FURTHER,
        help="Go on where a part of the network could not be followed or proved: its channels stay where they are."
        " Default: only where that is less than half of the parameters.",
        show_default=False,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of every random choice.")]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Device and verbosity of a command."""

    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N, or auto: CUDA where there is one.")] = (
        "auto"
    )
    quiet: QuietOption = False


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which images, and what happens to them before the network."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="digits, cifar10, cifar100, mnist, torchvision's NAME:FOLDER, a .npz or .npy file, a folder of images,"
            " by class or not, or a list of files (.txt, .csv); labels are not needed to fuse."
            " Default: the built-in data set that the checkpoints' cards name.",
        ),
    ] = None
    data_root: Annotated[
        Path,
        typer.Option(
            "--data-root", metavar="FOLDER", help="Where downloaded data sets are kept.", rich_help_panel=FURTHER
        ),
    ] = Path("data")
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean", metavar="R,G,B", help="Mean of each channel, in units of [0, 1].", rich_help_panel=FURTHER
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option("--std", metavar="R,G,B", help="Standard deviation of each channel.", rich_help_panel=FURTHER),
    ] = None

    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="H,W",
            help="Resize images until they cover this height and width, and crop their middle.",
            rich_help_panel=FURTHER,
        ),
    ] = None

    def sizes(self) -> tuple[int, int] | None:
        """Read `--size`; one number is a square."""
        if self.size is None:
            return None
        if not re.fullmatch(r"\d{1,6}([,x]\d{1,6})?", self.size):
            raise RecipeError(f"--size {self.size!r} must be height and width in pixels, like 224,224")
        height, *width = map(int, re.split("[,x]", self.size))
        return height, *(width or [height])  # type: ignore[return-value]

    def means(self) -> tuple[float, ...] | None:
        """Read `--mean`."""
        return None if self.mean is None else numbers("--mean", self.mean)

    def stds(self) -> tuple[float, ...] | None:
        """Read `--std`."""
        return None if self.std is None else numbers("--std", self.std)


@dataclasses.dataclass(frozen=True)
class FusionOptions:
    """Inputs and outputs of a fusion."""

    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            metavar="ARCH",
            help=f"What the networks are: {_NAMING}; once, or once per parent where their widths differ. {_FROM_CARDS}",
        ),
    ] = None
    width: Annotated[
        float | None,
        typer.Option(
            "--width",
            metavar="FACTOR",
            help="Width of the child, for an architecture that takes a width; any will do.",
            rich_help_panel=FURTHER,
        ),
    ] = None
    child_arch: Annotated[
        str | None,
        typer.Option(
            "--child-arch",
            metavar="ARCH",
            help="What the child is: the parents' architecture at any width.",
            rich_help_panel=FURTHER,
        ),
    ] = None
    key: KeyOption = None
    trust: TrustOption = None
    report: ReportOption = None
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the path between two parents, or with goal best the candidates (.png, .pdf or .svg).",
        ),
    ] = None
    out_parent: Annotated[
        Path | None,
        typer.Option(
            "--out-parent",
            metavar="FILE",
            help="Where the parent goes that is trained as long as the child, with --distil or train.finetune"
            " (.safetensors).",
            rich_help_panel=FURTHER,
        ),
    ] = None
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes",
            metavar="LABELS",
            help="Which labels the outputs of a parent stand for, once per parent in order: 0-4, or 1,3,7, or names of"
            " classes, cat,dog. The child has an output for each of all labels. Default: what the cards say.",
        ),
    ] = None


SHORT_FLAGS = {"learning_rate": ("--lr",)}


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read `0.5,0.5`; a `RecipeError` names the option when there is something else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"{option} {text!r} must be numbers with commas between them, like 0.5,0.5") from None


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """Recipe of a command: a preset, and changes of it."""

    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "--recipe",
            metavar="NAME|FILE",
            help="fast, standard, best, distil or a published method (`depfuse recipes` lists them), a YAML or JSON"
            " file of settings, or an earlier run's report. Options change it.  [default: standard]",
        ),
    ] = None
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SETTING=VALUE",
            help="Change a setting, such as align.solver=sinkhorn or align.solver.regularisation=0.05; may be given"
            " again. `depfuse settings` lists all.",
        ),
    ] = None
    calibration: Annotated[
        int | None,
        typer.Option("--calibration", metavar="IMAGES", help="Calibration images, without labels.  [default: 2000]"),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="X,Y,...", help="One share per parent, summing to 1; equal if left out."),
    ] = None
    distil: Annotated[
        int | None,
        typer.Option("--distil", metavar="EPOCHS", help="Train the child towards the parents' ensemble.  [default: 0]"),
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="NUMBER", help="Seed of every random choice.  [default: 0]")
    ] = None
    allow_fixed: AllowFixed = None

    @property
    def given(self) -> dict[str, Any]:
        """Path -> value of the settings given as options."""
        found = {
            "calibration.images": self.calibration,
            "merge.weights": None if self.weights is None else numbers("--weights", self.weights),
            "train.distil": self.distil,
            "seed": self.seed,
            "align.allow_fixed": self.allow_fixed,
        }
        return {**{path: value for path, value in found.items() if value is not None}, **parsed(self.changes or ())}

    def read(self) -> Source:
        """Read the preset; `standard` where none is named."""
        return read(self.preset or "standard")

    def of_file(self, file: RunFile) -> RecipeOptions:
        """Take the settings of a file that is the whole command."""
        if self.preset is not None:
            raise RecipeError(f"{file.path} and --preset {self.preset} both say the settings: give one of them")
        return dataclasses.replace(self, preset=str(file.path))

    def named(self, recipe: Recipe) -> str:
        """Say by which preset a recipe is, and what options changed of it."""
        changed = ", ".join(f"{path}={value}" for path, value in by_path(self.given).items())
        return f"By preset {recipe.preset}{f', with {changed}' if changed else ''}."

    def recipe(self) -> Recipe:
        """Build the preset with the settings that options change, without those that nothing reads any more."""
        given = self.given
        return Recipe.with_read({**self.read().settings, **given}, keep=given)


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
