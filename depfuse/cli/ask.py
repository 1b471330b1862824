"""`depfuse ask`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depfuse.cli.console import Screen
from depfuse.cli.importing import importing
from depfuse.cli.named import read_named
from depfuse.cli.options import ArchitectureOption, Checkpoints, DataOptions, KeyOption, RunOptions, TrustOption
from depfuse.cli.spread import spread
from depfuse.errors import CheckpointError, RecipeError
from depfuse.io.atomic_files import check_writable
from depfuse.io.label_rows import TABLE, check_folder_of_table
from depfuse.text import counted

TO_CHOOSE_FROM = 10_000


@spread
def ask(
    context: typer.Context,
    parents: Checkpoints,
    data: DataOptions,
    options: RunOptions,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where images and table go.")],
    number: Annotated[int, typer.Option("--number", metavar="IMAGES", min=1, help="How many images to label.")] = 100,
    seed: Annotated[int, typer.Option("--seed", metavar="NUMBER", min=0, help="Of the choice.")] = 0,
    arch: ArchitectureOption = None,
    key: KeyOption = None,
    trust: TrustOption = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--classes", metavar="LABELS", help="Which labels a parent knows, as for `depfuse fuse`."),
    ] = None,
) -> None:
    """Choose images to label, and write them with an empty table."""
    if len(parents) < 2:
        raise RecipeError("images are chosen between parents: give at least two")
    read_named(parents, arch, data, classes, trust, key)
    if out.is_file():
        raise CheckpointError(f"--out {out} is a file: give a folder")
    check_folder_of_table(out, None if data.data is None else Path(data.data))
    check_writable(out / TABLE)
    # What follows needs torch, for which no mistake above has to wait.
    with importing():
        from depfuse.cli.inputs import read_inputs, read_template
        from depfuse.data import calibration_loader
        from depfuse.data.loader import calibration_order
        from depfuse.distributed.device import resolve_device
        from depfuse.fusion.ask import ask as choose
        from depfuse.io.label_table import write_table

    screen = Screen(options.quiet)
    with screen.working() as work:
        device = resolve_device(options.device)
        work.step("reading networks and data")
        inputs = read_inputs(parents, arch, data, device, classes, fused=True, trust=trust, key=key, judged=True)
        train = inputs.data.train
        images = calibration_loader(inputs.data, TO_CHOOSE_FROM, device=device, seed=seed)
        found = choose(inputs.parents(read_template(inputs, None, None)[1]), images, number, seed=seed)
        numbers = calibration_order(len(train), seed)[: images.count][found].sort().values
        write_table(out, train, numbers)
    screen.say(
        f"{counted(len(numbers), 'image')} to label in {out}, of {images.count:,}. Fill in the column `label` of"
        f" {out / TABLE}, as far as you like, and give it to `depfuse fuse --labels-from {out / TABLE}`."
    )
