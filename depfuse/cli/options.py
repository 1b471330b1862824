"""Options that commands share; `spread` makes options of the fields of each class here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from depfuse.cli.help import FURTHER
from depfuse.cli.run_file import RunFile
from depfuse.cli.spread import numbers
from depfuse.data.names import DOWNLOADED
from depfuse.data.preprocessing import MOST_PIXELS, SIDE
from depfuse.distributed.device_names import check_device_name
from depfuse.errors import DataError, RecipeError
from depfuse.recipe import Recipe
from depfuse.recipe.arrange import by_path
from depfuse.recipe.paths import check_once, parsed
from depfuse.recipe.presets import Source, read

NAMING = (
    "NAME of a built-in network, torchvision:NAME, timm:NAME, transformers:NAME, spandrel:NAME, FILE.py:FACTORY or"
    " MODULE:FACTORY, each with (key=value, ...) if need be"
)
_FROM_CARDS = "Default: what the checkpoints' cards say, or the tensors of an upscaler."

Architecture = Annotated[str, typer.Argument(metavar="ARCH", help=f"{NAMING}.")]
Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        metavar="CHECKPOINT", help="Files or folders with weights: .safetensors, .pt, ... (`inspect` shows)"
    ),
]
ArchitectureOption = Annotated[
    str | None,
    typer.Option("--arch", metavar="ARCH", help=f"What the networks are: {NAMING}. {_FROM_CARDS}"),
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
        " state_dict_ema, model.net with dots for depth, or . for the top; once, or once per file. Default: those with"
        " the network's names, and of several an average of steps (EMA).",
    ),
]
ReportOption = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write everything that was found as JSON.")
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="What the networks' outputs mean: classes, dense, multilabel, binary, regression, features, detection"
        " or none."
        "  [default: by the outputs]",
        rich_help_panel=FURTHER,
    ),
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

    def __post_init__(self) -> None:
        check_device_name(self.device)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which images, and what happens to them before the network."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="digits, cifar10, cifar100, mnist, torchvision's NAME:FOLDER, a .npz or .npy file, a folder of images,"
            " by class or not, or of volumes, or a list of files (.txt, .csv); labels are not needed to fuse."
            " Default: the built-in data set that the checkpoints' cards name.",
        ),
    ] = None
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root",
            metavar="FOLDER",
            help="Where downloaded data sets are kept. Default: data.",
            rich_help_panel=FURTHER,
        ),
    ] = None
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

    crop: Annotated[
        str | None,
        typer.Option(
            "--crop",
            metavar="PIXELS",
            help="Cut squares of this many pixels a side out of the images of a folder at random, instead of resizing"
            " them; or patches out of volumes, 64 or D,H,W. Default: of volumes, and where the networks are of spandrel"
            f" and --size is left out, as many as nine tenths of them have, {SIDE} at most.",
            rich_help_panel=FURTHER,
        ),
    ] = None

    @property
    def files(self) -> list[Path]:
        """The file or folder that the data may be, which no output may overwrite."""
        return [] if self.data is None else [Path(self.data)]

    def root(self, name: str) -> Path:
        """Give the folder of downloaded data sets; raise `DataError` where it is said of one that is none."""
        if self.data_root is not None and name not in DOWNLOADED:
            raise DataError(
                f"--data-root says where {', '.join(DOWNLOADED)} are kept, and {name} is none of them: leave it out"
            )
        return self.data_root or Path("data")

    def crops(self) -> int | tuple[int, ...] | None:
        """Read `--crop`: one number, or two or three."""
        if self.crop is None:
            return None
        if not re.fullmatch(r"\d{1,6}([,x]\d{1,6}){0,2}", self.crop):
            raise RecipeError(f"--crop {self.crop!r} must be pixels a side, like 64, or the sides of a patch, 32,64,64")
        sides = tuple(map(int, re.split("[,x]", self.crop)))
        if not all(1 <= side <= MOST_PIXELS for side in sides):
            raise RecipeError(f"--crop {self.crop} must be from 1 to {MOST_PIXELS} pixels a side")
        return sides if len(sides) > 1 else sides[0]

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
            help=f"What the networks are: {NAMING}; once, or once per parent where their widths differ. {_FROM_CARDS}",
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
    labels_from: Annotated[
        Path | None,
        typer.Option(
            "--labels-from",
            metavar="FILE",
            help="Table of `depfuse ask` with labels filled in: they help to find one head for all parents.",
            rich_help_panel=FURTHER,
        ),
    ] = None
    test: Annotated[
        int | None,
        typer.Option(
            "--test",
            metavar="IMAGES",
            min=2,
            help="Evaluate on so many of the test images, drawn at random; the report has standard errors.",
            rich_help_panel=FURTHER,
        ),
    ] = None
    out_parent: Annotated[
        Path | None,
        typer.Option(
            "--out-parent",
            metavar="FILE",
            help="Where the parent goes that is trained as long as the child, with --distil, train.self_training or"
            " train.finetune (.safetensors).",
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
    background: Annotated[
        str | None,
        typer.Option(
            "--background",
            metavar="LABEL",
            help="Of detectors whose scores are of a softmax with background: which label that is, by number or name.",
            rich_help_panel=FURTHER,
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """Recipe of a command: a preset, and changes of it."""

    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "--recipe",
            metavar="NAME|FILE",
            help="fast, closed-form, standard, best, distil or a published method (`depfuse recipes` lists them), a"
            " YAML or JSON file of settings, or an earlier run's report. Options change it.  [default: standard]",
        ),
    ] = None
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SETTING=VALUE",
            help="Change a setting, such as align.solver=sinkhorn or align.solver.regularisation=0.05; may be given"
            " again, and of two values of one setting the last counts. `depfuse settings` lists all.",
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
    task: TaskOption = None

    @property
    def given(self) -> dict[str, Any]:
        """Path -> value of the settings given as options."""
        found = {
            "calibration.images": self.calibration,
            "merge.weights": None if self.weights is None else numbers("--weights", self.weights),
            "train.distil": self.distil,
            "seed": self.seed,
            "align.allow_fixed": self.allow_fixed,
            "task": self.task,
        }
        options = {path: value for path, value in found.items() if value is not None}
        changes = parsed(self.changes or ())
        if "preset" in changes:
            raise RecipeError(f"a preset is more than its name: give --preset {changes['preset']} instead of --set")
        check_once(options, changes)
        return {**options, **changes}

    @property
    def files(self) -> list[Path]:
        """The file that the preset may be, which no output may overwrite."""
        return [] if self.preset is None else [Path(self.preset)]

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

    def recipe(self, *, labelled: bool = False) -> Recipe:
        """Build the preset with the settings that options change, without those that nothing reads any more.

        Where images are `labelled` by a table that is still to be read, the recipe has one such image.
        """
        given = self.given
        settings = {**self.read().settings, **given}
        if labelled:
            said = by_path(settings)
            if also := next((path for path in ("teach.labelled", "train.finetune") if said.get(path)), None):
                raise RecipeError(f"--labels-from gives the labels of a few images: leave out {also}")
            settings["teach.labelled"] = 1
        recipe = Recipe.with_read(settings, keep=given)
        if why := recipe.teaches_nobody():
            raise RecipeError(why)
        return recipe
