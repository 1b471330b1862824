"""`depfuse groups`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from depfuse.cli.console import Screen
from depfuse.cli.importing import importing
from depfuse.cli.named import architecture_of
from depfuse.cli.options import NAMING, AllowFixed, RunOptions, SeedOption
from depfuse.cli.spread import spread
from depfuse.data.memory import too_much
from depfuse.errors import ArchitectureError, DataError
from depfuse.io.atomic_files import replacing
from depfuse.io.output_files import check_outputs
from depfuse.report.plot_kind import plot_kind

_BYTES = 4  # of a number in float32


@spread
def groups(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH", help=f"{NAMING}; or a file or folder of weights that says it.")
    ],
    options: RunOptions,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input-shape",
            metavar="C,H,W",
            help="Shape of one input. Default: what suits the architecture.",
        ),
    ] = None,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Permute every group at random in float64.")] = True,
    proof: Annotated[
        Literal["full", "sampled"],
        typer.Option(
            "--proof",
            help="full: failing groups and their parts are told one by one. sampled: all groups at once, three times;"
            " what few runs of the network do not clear is fixed.",
        ),
    ] = "full",
    verbose: Annotated[
        bool | None,
        typer.Option(
            "--verbose/--brief",
            help="Every member of every group, or one line per group. Default: long lists are cut short.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw each layer's channels, coloured by group (.png, .pdf or .svg)."
        ),
    ] = None,
    allow_fixed: AllowFixed = None,
    seed: SeedOption = 0,
) -> None:
    """Print the channel groups of a network with random weights."""
    shape = None if input_shape is None else _shape(input_shape)
    kind = None if plot is None else plot_kind(plot)
    check_outputs({"--plot": plot})
    arch = architecture_of(arch)
    # What follows needs torch, for which no mistake above has to wait.
    with importing():
        import torch

        from depfuse.distributed.device import resolve_device
        from depfuse.groups import find_groups, not_followed, prove_groups
        from depfuse.models import build_network, example_shape
        from depfuse.report.channel_map import draw_channels
        from depfuse.report.group_tree import Detail, group_tree, summary_line

    device = resolve_device(options.device)
    screen = Screen(options.quiet)
    with screen.working() as work:
        work.step("building the network")
        torch.manual_seed(seed)
        model = build_network(arch).to(device).eval()
        shape = shape or _fitting(example_shape(arch, model))
        example = torch.randn(1, *shape, dtype=torch.float32, device=device)
        work.step("finding channel groups")
        channel_groups = find_groups(model, example)
        if prove:
            channel_groups = prove_groups(model, channel_groups, example, seed=seed, proof=proof)
        if plot is not None and kind is not None:
            work.step("drawing them")
            with replacing(plot) as unfinished:
                draw_channels(arch, model, example, channel_groups, unfinished, kind)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    detail: Detail = "usual" if verbose is None else "full" if verbose else "brief"
    screen.show(group_tree(arch, channel_groups, shapes, detail))
    screen.say(summary_line(channel_groups))
    if not_followed(channel_groups) and not allow_fixed:
        raise typer.Exit(1)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ArchitectureError(f"--input-shape {text!r} must be positive whole numbers like 3,224,224")
    return _fitting(shape)


def _fitting(shape: tuple[int, ...]) -> tuple[int, ...]:
    if needed := too_much(_BYTES * math.prod(shape)):
        raise DataError(f"an input of shape {', '.join(map(str, shape))} needs {needed}: give a smaller one")
    return shape
