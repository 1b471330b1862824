"""What a user asks of a fusion, and everything of it that can be refused before anything waits for torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from depfuse.cli.named import check_family, read_named
from depfuse.cli.options import DataOptions, FusionOptions, RunOptions
from depfuse.cli.points import REFITTED_POINTS
from depfuse.errors import DataError, RecipeError
from depfuse.evaluate import path_alphas
from depfuse.io.folders import weight_files
from depfuse.io.label_rows import TABLE
from depfuse.io.output_files import check_model_card, check_outputs, check_weights_name, is_folder, weights_in
from depfuse.models.architecture import check_built_in, family, parse_architecture
from depfuse.recipe import Recipe
from depfuse.report.plot_kind import plot_kind


@dataclass(frozen=True)
class Request:
    """Parents, data, recipe, and the files to write.

    `points` is the number of networks on the path between two parents, None where none is wanted; of one that is
    refitted, each of which takes as long as a child, no more than `refitted_points`. `methods` are further recipes to
    draw paths of; the first of them is `recipe`. Where not `path_refitted`, networks on the path are averaged and
    renormalised only. `picture` is the file of a strip of pictures along the path. `settings` are files that the
    recipe is read from.
    """

    parents: Sequence[Path]
    data: DataOptions
    recipe: Recipe
    options: RunOptions
    fusion: FusionOptions
    out: Path | None
    points: int | None
    command: list[str]
    methods: Mapping[str, Recipe] = field(default_factory=dict)
    refitted_points: int = REFITTED_POINTS
    path_refitted: bool = True
    picture: Path | None = None
    settings: Sequence[Path] = ()

    def check(self) -> None:
        """Raise a `DepfuseError` where a file, a header, a name or the recipe cannot be what was meant."""
        self._check_outputs()
        named = read_named(
            self.parents, self.fusion.arch, self.data, self.fusion.classes, self.fusion.trust, self.fusion.key
        )
        check_family(self.parents, named.architectures)
        if len(self.parents) < 2:
            raise RecipeError("a fusion needs at least two parents")
        self._check_width(named.architectures[0])
        self.recipe.shares(len(self.parents))
        self.recipe.align.check_numbers(len(self.parents))
        if self.points is not None:
            self._check_path(self.points)
        if self.fusion.labels_from is not None:
            self._check_labels(self.fusion.labels_from)
        if self.fusion.out_parent is not None and not self.recipe.trains:
            raise RecipeError(
                "no parent is trained: leave out --out-parent, or give --distil, train.self_training or train.finetune"
            )

    def _check_outputs(self) -> None:
        if self.fusion.plot is not None:
            plot_kind(self.fusion.plot)
        check_weights_name("--out", self.out, child=True)
        if self.out is not None and is_folder(self.out):
            check_model_card("--out", self.out)
        check_weights_name("--out-parent", self.fusion.out_parent)
        outputs = {"--out": None if self.out is None else weights_in(self.out), "--out-parent": self.fusion.out_parent}
        read = [*self.parents, *(file for parent in self.parents for file in weight_files(parent))]
        read += [*self.data.files, *self.settings, *([self.fusion.labels_from] if self.fusion.labels_from else [])]
        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise RecipeError(f"--picture {self.picture}: its name must end in .png")
        shown = {"--plot": self.fusion.plot, "--picture": self.picture}
        check_outputs({**outputs, "--report": self.fusion.report, **shown}, read)

    def _check_labels(self, table: Path) -> None:
        if table.is_dir():
            raise DataError(f"{table} is a folder: give --labels-from its table, {table / TABLE}")
        if not table.is_file():
            raise DataError(f"there is no file {table}: give --labels-from what `depfuse ask` wrote")

    def _check_width(self, first: str) -> None:
        width, child_arch = self.fusion.width, self.fusion.child_arch
        if width is not None and child_arch is not None:
            raise RecipeError("--width and --child-arch both say how wide the child is: give one of them")
        if width is not None and not 0 < width < math.inf:
            raise RecipeError(f"--width {width:g} must be more than 0")
        if child_arch is not None:
            check_built_in(parse_architecture(child_arch))
            if family(child_arch) != family(first):
                raise RecipeError(
                    f"the child cannot be a {child_arch}: its parents are of another architecture ({first})"
                )
        if self.recipe.merge.width_of is not None and (width is not None or child_arch is not None):
            option = "--child-arch" if width is None else "--width"
            raise RecipeError(f"{option} and merge.width_of both say how wide the child is: give one of them")

    def _check_path(self, points: int) -> None:
        if len(self.parents) != 2:
            raise RecipeError(f"a path runs between two parents, not {len(self.parents)}")
        path_alphas(points)
        for recipe in (self.recipe, *self.methods.values()):
            if recipe.align.solver.jointly:
                raise RecipeError(
                    f"a path has other shares at every point, and solver {recipe.align.solver.name} matches by them: "
                    "leave out the path or plot, or choose another solver"
                )
        if self.recipe.trains:
            raise RecipeError(
                "a path shows children as they are merged: leave out --plot, or distil, self_training and finetune"
            )
        if self.recipe.merge.weights_by != "network":
            raise RecipeError("a path gives a parent one share everywhere: leave out merge.weights_by, or the path")
