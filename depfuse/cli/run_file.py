"""A file that is a whole command: parents, data and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depfuse.data.names import is_named_set, split_name
from depfuse.data.preprocessing import MOST_PIXELS
from depfuse.errors import RecipeError
from depfuse.models.architecture import parse_architecture
from depfuse.models.origin import shown, why_not
from depfuse.recipe.presets import ENDINGS, read

if TYPE_CHECKING:
    from depfuse.cli.options import DataOptions, FusionOptions


@dataclass(frozen=True)
class RunFile:
    """Arguments of a command in a file, beside its settings; its paths are relative to its folder."""

    path: Path
    run: dict[str, Any]

    def completed(
        self, data: DataOptions, fusion: FusionOptions, out: Path | None
    ) -> tuple[list[Path], DataOptions, FusionOptions, Path | None]:
        """Return parents, and options completed by those of the file.

        Raises
        ------
        RecipeError
            The file names no parents, something of another kind than is wanted, or code as the networks.
        """
        parents = self._texts("parents", "a list of files or folders, such as [first.safetensors, second.safetensors]")
        if parents is None:
            raise RecipeError(f"{self.path} names no parents: write parents: [first.safetensors, second.safetensors]")
        said: dict[str, Any] = {
            "data": self._data(),
            "size": self._numbers("size", "height and width in pixels, such as [224, 224]"),
            "mean": self._numbers("mean", "a number for each channel, such as [0.49, 0.48, 0.45]"),
            "std": self._numbers("std", "a number for each channel, such as [0.25, 0.24, 0.26]"),
            "crop": self._pixels("crop"),
        }
        data = dataclasses.replace(data, **{name: own for name, own in said.items() if getattr(data, name) is None})
        report = self._text("report")
        said = {
            "arch": self._architectures(),
            "classes": self._texts("classes", "a list with one text per parent, such as [0-4, 5-9]"),
            "background": self._label("background"),
            "key": self._texts("key", "a text, such as state_dict_ema, or a list with one text per parent", one=True),
            "report": None if report is None else self._place(report),
        }
        fusion = dataclasses.replace(
            fusion, **{name: own for name, own in said.items() if getattr(fusion, name) is None}
        )
        written = self._text("out")
        if out is None and written is not None:
            out = self._place(written)
        return [self._place(own) for own in parents], data, fusion, out

    def _data(self) -> str | None:
        named = self._text("data")
        if named is None:
            return None
        place = self._place(named)
        name, folder = split_name(named)
        if is_named_set(named) and self._place(folder).is_dir():
            named = f"{name}:{self._place(folder)}"
        return str(place) if place.exists() else named

    def _architectures(self) -> list[str] | None:
        """Read the networks' architectures, none of which may be code: a file that is read runs none."""
        found = self._texts("arch", "an architecture, such as torchvision:resnet18, or a list of them", one=True)
        for own in found or ():
            architecture = parse_architecture(own)
            if reason := why_not(architecture.source, architecture.arguments):
                raise RecipeError(
                    f"{self.path}: arch {shown(own)} {reason}: leave it out there, and give --arch yourself"
                )
        return found

    def _text(self, name: str) -> str | None:
        value = self.run.get(name)
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"{self.path}: {name} is a text, not {value!r}")
        return value

    def _label(self, name: str) -> str | None:
        value = self.run.get(name)
        if value is not None and (not isinstance(value, (int, str)) or isinstance(value, bool)):
            raise RecipeError(f"{self.path}: {name} is a label or the name of one, such as 0")
        return None if value is None else str(value)

    def _texts(self, name: str, form: str, *, one: bool = False) -> list[str] | None:
        value = self.run.get(name)
        if value is None:
            return None
        values = [value] if one and isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(own, str) for own in values):
            raise RecipeError(f"{self.path}: {name} is {form}")
        return values

    def _numbers(self, name: str, form: str) -> str | None:
        """Read one number or several, as an option would be written."""
        value = self.run.get(name)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(own, (int, float)) and not isinstance(own, bool) for own in values):
            raise RecipeError(f"{self.path}: {name} is {form}")
        return ",".join(map(str, values))

    def _pixels(self, name: str) -> int | None:
        value = self.run.get(name)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_PIXELS
        ):
            raise RecipeError(f"{self.path}: {name} is a number of pixels, such as 64")
        return value

    def _place(self, name: str) -> Path:
        return self.path.parent / name


def run_file(parents: Sequence[Path]) -> RunFile | None:
    """Return the file that is the whole command, None where the parents are networks."""
    if len(parents) != 1 or not parents[0].name.endswith(ENDINGS):
        return None
    return RunFile(parents[0], read(str(parents[0])).run)
