"""A file that is a whole command: parents, data and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depfuse.data.names import is_named_set, split_name
from depfuse.errors import RecipeError
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
        """Return parents, and options completed by those of the file."""
        parents = self.run.get("parents")
        if not isinstance(parents, list) or not all(isinstance(own, str) for own in parents):
            raise RecipeError(f"{self.path} names no parents: write parents: [first.safetensors, second.safetensors]")
        if data.data is None and (named := self._text("data")) is not None:
            place = self._place(named)
            name, folder = split_name(named)
            if is_named_set(named) and self._place(folder).is_dir():
                named = f"{name}:{self._place(folder)}"
            data = dataclasses.replace(data, data=str(place) if place.exists() else named)
        if fusion.classes is None and (classes := self.run.get("classes")) is not None:
            if not isinstance(classes, list) or not all(isinstance(own, str) for own in classes):
                raise RecipeError(f"{self.path}: classes is a list with one text per parent, such as [0-4, 5-9]")
            fusion = dataclasses.replace(fusion, classes=classes)
        if fusion.key is None and (key := self.run.get("key")) is not None:
            keys = [key] if isinstance(key, str) else key
            if not isinstance(keys, list) or not all(isinstance(own, str) for own in keys):
                raise RecipeError(
                    f"{self.path}: key is a text, such as state_dict_ema, or a list with one text per parent"
                )
            fusion = dataclasses.replace(fusion, key=keys)
        if fusion.report is None and (report := self._text("report")) is not None:
            fusion = dataclasses.replace(fusion, report=self._place(report))
        if out is None and (written := self._text("out")) is not None:
            out = self._place(written)
        return [self._place(own) for own in parents], data, fusion, out

    def _text(self, name: str) -> str | None:
        value = self.run.get(name)
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"{self.path}: {name} is a text, not {value!r}")
        return value

    def _place(self, name: str) -> Path:
        return self.path.parent / name


def run_file(parents: Sequence[Path]) -> RunFile | None:
    """Return the file that is the whole command, None where the parents are networks."""
    if len(parents) != 1 or not parents[0].name.endswith(ENDINGS):
        return None
    return RunFile(parents[0], read(str(parents[0])).run)
